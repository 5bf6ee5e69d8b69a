# syntax=docker/dockerfile:1
FROM python:3.11-slim AS build
# A package index that has the CPU build of torch keeps the image small: --build-arg EXTRA_INDEX_URL=...
ARG EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/headstart
COPY requirements.lock ./
RUN PIP_EXTRA_INDEX_URL="$EXTRA_INDEX_URL" /opt/headstart/bin/pip install --constraint requirements.lock \
    "torch==$(sed -n 's/^torch==//p' requirements.lock)"
COPY pyproject.toml README.md ./
COPY app app
COPY models models
COPY migrations migrations
RUN /opt/headstart/bin/pip install --constraint requirements.lock ".[video]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --create-home headstart && install -d -o headstart -g headstart /var/lib/headstart
COPY --from=build /opt/headstart /opt/headstart
ENV PATH=/opt/headstart/bin:$PATH PYTHONUNBUFFERED=1 HEADSTART_DATA=/var/lib/headstart HEADSTART_HOST=0.0.0.0
USER headstart
VOLUME /var/lib/headstart
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('HEADSTART_PORT', '8000') + '/v2/health/ready', timeout=2)"]
CMD ["headstart-server", "serve"]
