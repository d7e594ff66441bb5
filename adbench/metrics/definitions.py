"""One line about every built-in metric, by the name it has in records and tables. The formulas are in docs/metrics.md."""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "auprc": "Average precision over all test brain voxels, pooled; its chance level is the lesion prevalence",
    "auroc": "Area under the ROC curve over all test brain voxels, pooled",
    "auprc_subject": "Mean over lesion-bearing subjects of per-subject average precision",
    "dice@val": "Mean per-volume Dice at the threshold that maximises pooled Dice on validation (headline)",
    "dice@fpr1": "Mean per-volume Dice at 1 % false-positive voxels on healthy validation subjects",
    "dice@fpr5": "Mean per-volume Dice at 5 % false-positive voxels on healthy validation subjects",
    "dice@conformal05": "Mean per-volume Dice at the threshold that 5 % of healthy subjects may fail at (split-conformal)",
    "dice@conformal10": "Mean per-volume Dice at the threshold that 10 % of healthy subjects may fail at (split-conformal)",
    "dice@best": "ORACLE: mean per-volume Dice at the best common threshold, chosen on test",
    "dice_pooled@best": "ORACLE: pooled Dice at the best threshold, chosen on test (highest F1)",
    "dice@subject_best": "ORACLE: mean of each test subject's own best Dice",
    "fpr_healthy@conformal05": "Share of healthy test subjects above 1 % false-positive voxels, at most .05 promised "
    "(less is better)",
    "fpr_healthy@conformal10": "Share of healthy test subjects above 1 % false-positive voxels, at most .10 promised "
    "(less is better)",
    "lesion_recall@val": "Share of lesions (26-connected) that a predicted component is matched with, at the val threshold",
    "lesion_f1@val": "F1 of lesions found and of predicted components, at the val threshold",
    "lesion_iou@val": "Mean over lesions of the intersection over union with the matched component (0: not found)",
    "pq@val": "Panoptic quality: mean intersection over union of the found lesions times lesion_f1@val",
    "froc": "Mean lesion recall at 1, 2, 4 and 8 false components a volume",
    "froc@1": "Lesion recall at 1 false component a volume",
    "froc@2": "Lesion recall at 2 false components a volume",
    "froc@4": "Lesion recall at 4 false components a volume",
    "froc@8": "Lesion recall at 8 false components a volume",
    "fa_slice": "Share of lesion-free slices with any voxel above the val threshold (less is better)",
    "fa_slice@conformal05": "The same at the threshold that 5 % of healthy subjects may fail at (less is better)",
    "fa_slice@conformal10": "The same at the threshold that 10 % of healthy subjects may fail at (less is better)",
    "fa_scan@conformal05": "Predicted components of a lesion-free volume where 5 % of healthy subjects may fail (less is better)",
    "fa_scan@conformal10": "Predicted components of a lesion-free volume where 10 % of healthy subjects may fail (less is better)",
    "image_auroc": "Slices with against slices without lesion, by the median of the highest 1 % of scores: ROC area",
    "image_auprc": "Slices with against slices without lesion, by the median of the highest 1 % of scores: average precision",
    "image_auroc@max": "The same by a slice's highest score: ROC area",
    "image_auprc@max": "The same by a slice's highest score: average precision",
    "recon_l1": "Mean absolute reconstruction error on healthy tissue (less is better)",
    "recon_ssim": "Structural similarity of the reconstruction on healthy tissue",
}
