FROM python:3.11-slim

WORKDIR /opt/tollway
COPY pyproject.toml README.md hatch_build.py ./
COPY policy policy
COPY streams streams
COPY migrations migrations
# Without the extra "embedded": a deployment has servers of its own.
RUN pip install --no-cache-dir . && useradd --system --no-create-home tollway \
  && install --directory --owner tollway /var/lib/tollway

# Sums of a replay must not depend on the number of cores.
ENV TOLLWAY_HOME=/var/lib/tollway PYTHONUNBUFFERED=1 OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
USER tollway
CMD ["tollway", "worker"]
