#!/bin/sh
# Makes the CA on first start, and gives each party what it needs of it, each in a volume of its
# own. With the argument `broker`, also a broker that is not ours.
set -eu
umask 077

if [ ! -e "$ASSAY_DIR" ]; then
    # Moved into place when it is complete: what a killed start leaves does not look like a CA.
    rm -rf "$ASSAY_DIR.new"
    # What it advises is done below.
    assay init --server-name broker "$ASSAY_DIR.new" 2> /tmp/init || { cat /tmp/init >&2; exit 1; }
    # One of the devices shows a token in place of a certificate.
    sed -i 's/^flows = .*/flows = ["ticket", "sealed", "shared-key"]/' "$ASSAY_DIR.new/assay.toml"
    mv "$ASSAY_DIR.new" "$ASSAY_DIR"
    echo "made a CA in $ASSAY_DIR, whose broker is named \"broker\""
fi

[ -e /var/lib/vendor/complete ] || echo 'waiting for the certificates of the TPM manufacturer'
until [ -e /var/lib/vendor/complete ]; do sleep 1; done
# Without --admit, each device would wait until somebody approves it.
assay trust add --admit /var/lib/vendor/*.pem

# Whoever waits for a file finds it complete.
publish() {
    cp "$1" "$2.new"
    chmod "$3" "$2.new"
    mv "$2.new" "$2"
}
publish "$ASSAY_DIR/root.pem" /var/lib/assay-public/root.pem 644
for file in root.pem operator.pem operator.key assay.toml; do
    publish "$ASSAY_DIR/$file" "/var/lib/assay-operator/$file" 600
done
if [ "${1-}" = broker ]; then
    for file in root.pem server.pem server.key; do
        publish "$ASSAY_DIR/$file" "/var/lib/assay-broker/$file" 600
    done
fi
