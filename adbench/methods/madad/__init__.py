"""MAD-AD: masked latent diffusion for unsupervised anomaly detection (arXiv 2502.16943, IPMI 2025)."""
