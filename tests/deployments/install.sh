#!/usr/bin/env bash
# Installs systemd-analyze from the distribution (Debian, Ubuntu), for tests/deployments. Does nothing
# where it is there already.
set -euo pipefail
command -v systemd-analyze >/dev/null && exit 0
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    systemd
