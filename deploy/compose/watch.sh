#!/bin/sh
# An operator's subscriber. It ends with its connection; the restart policy brings it back.
set -eu
[ -e "$ASSAY_DIR/assay.toml" ] || echo 'waiting for the certificate of an operator'
until [ -e "$ASSAY_DIR/assay.toml" ]; do sleep 1; done
exec assay watch --broker mqtts://broker:8884
