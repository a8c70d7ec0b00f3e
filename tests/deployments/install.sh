#!/usr/bin/env bash
# Installs systemd-analyze for tests/deployments with apt (Debian, Ubuntu), unless it is already
# installed.
set -euo pipefail
command -v systemd-analyze >/dev/null && exit 0
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    systemd
