#!/bin/sh
# Make a virtual environment with mach-fleet and the extras named: install.sh cpu,store,trace
#
# From /wheelhouse alone if it holds the project's wheel, else from the source in /src and the
# package index. Wheels only: there is no compiler here. Variables change the places, for tests.
set -eu

extras=$1
target=${MACH_TARGET:-/opt/mach}
wheelhouse=${MACH_WHEELHOUSE:-/wheelhouse}
source=${MACH_SOURCE:-/src}

python3 -m venv "$target"
if ls "$wheelhouse"/mach_fleet-*.whl >/dev/null 2>&1; then
    set -- --no-index --find-links "$wheelhouse" "mach-fleet[$extras]"
else
    set -- "${source}[$extras]"
fi
"$target/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --no-warn-script-location \
    --only-binary :all: --compile "$@"
"$target/bin/python" -m pip check
# Nothing is installed at run time: what could do it goes.
"$target/bin/python" -m pip uninstall --yes --quiet pip
