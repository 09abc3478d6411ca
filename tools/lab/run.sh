#!/bin/sh
# Install what the lab needs (Debian, as root) and run it; arguments go to run.py.
set -eu
cd "$(dirname "$0")"

# The packages' own services stay off: the lab starts its servers itself, in its own network namespaces.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive xargs apt-get install -y -qq --no-install-recommends < packages.txt > /dev/null

python3 run.py "$@"
