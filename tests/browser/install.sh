#!/usr/bin/env bash
# Installs Chromium for tests/browser with apt (Debian), unless it is already installed.
set -euo pipefail
if command -v chromium >/dev/null; then exit 0; fi
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    chromium fonts-dejavu-core
