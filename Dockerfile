# A GPU image: docker build -t sims . && docker run --gpus all -v "$PWD:/work" sims train --preset cifar10-uncond ...
# (--shm-size 8g for several GPUs). BASE brings torch and CUDA; nothing here replaces them.
ARG BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime
FROM ${BASE}
WORKDIR /opt/sims
COPY pyproject.toml README.md LICENSE ./
COPY sims_core sims_core
COPY sims_toy sims_toy
COPY sims_image sims_image
COPY scripts scripts
RUN python -c "import torch; print('torch==' + torch.__version__.split('+')[0])" > /tmp/torch.txt \
 && pip install --no-cache-dir -c /tmp/torch.txt ".[fast,features,fid,diffusers]"
WORKDIR /work
ENTRYPOINT ["sims_image"]
CMD ["--help"]
