#!/usr/bin/env bash
# Installs Ceph's monitor, storage daemon and S3 gateway from the distribution (Debian, Ubuntu),
# for tests/ceph. Does nothing if they are already installed.
set -euo pipefail
complete=yes
for program in ceph ceph-mon ceph-osd monmaptool radosgw radosgw-admin; do
    command -v "$program" >/dev/null || complete=no
done
[ "$complete" = no ] || exit 0
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    ceph-common ceph-mon ceph-osd radosgw
