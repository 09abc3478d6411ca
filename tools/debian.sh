#!/bin/sh
# Install Debian packages that some tests ask for their verdict. Those tests skip, and say so, where this cannot be done.
set -eu
missing=""
for package in "$@"; do
    dpkg -s "$package" 2>/dev/null | grep -qx "Status: install ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "Not installed:$missing (needs Debian and root). Tests that need it will be skipped." >&2
    exit 0
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list of words is meant
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
