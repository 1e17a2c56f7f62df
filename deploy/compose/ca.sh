#!/bin/sh
# The CA with the built-in broker.
set -eu
/usr/local/lib/assay/prepare.sh
exec assay serve
