# adbench on the CPU; for a GPU
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 --tag adbench:cuda .
# with a CUDA that the driver and the torch of constraints.txt have in common, and `docker run --gpus all`.
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/adbench
COPY constraints.txt ./
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY adbench ./adbench
RUN pip install --no-cache-dir --constraint constraints.txt .

# Mount datasets at /data, a folder for prepared slices at /cache, and one for runs at /work.
ENV ADBENCH_DATA=/data ADBENCH_CACHE=/cache
WORKDIR /work
ENTRYPOINT ["adbench"]
CMD ["--help"]
