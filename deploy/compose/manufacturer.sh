#!/bin/sh
# A TPM manufacturer: swtpm's local CA certifies the EKs of new TPMs, one for each folder
# /var/lib/tpm-*. A TPM that is there stays as it is.
set -eu
umask 077
ca=/var/lib/manufacturer vendor=/var/lib/vendor

cat > /tmp/localca.conf <<END
statedir = $ca
signingkey = $ca/signing.key
issuercert = $ca/issuer.pem
certserial = $ca/serial
END
cat > /tmp/localca.options <<END
--platform-manufacturer Assay
--platform-version 1.0
--platform-model Laboratory
END
cat > /tmp/setup.conf <<END
create_certs_tool = /usr/bin/swtpm_localca
create_certs_tool_config = /tmp/localca.conf
create_certs_tool_options = /tmp/localca.options
active_pcr_banks = sha256
END

for tpm in /var/lib/tpm-*; do
    if [ ! -e "$tpm/tpm2-00.permall" ]; then
        new=$(mktemp -d)
        swtpm_setup --tpm2 --create-ek-cert --vmid "${tpm##*/}" --config /tmp/setup.conf \
            --tpm-state "$new" > "$new/log" 2>&1 || { cat "$new/log"; exit 1; }
        # Renamed when it is complete, since the device waits for it.
        cp "$new/tpm2-00.permall" "$tpm/new"
        mv "$tpm/new" "$tpm/tpm2-00.permall"
        echo "made a TPM with an EK certificate in $tpm"
    fi
done

for certificate in "$ca"/issuer.pem "$ca"/*rootca-cert.pem; do
    install --mode 644 "$certificate" "$vendor"
done
touch "$vendor/complete"
chmod 644 "$vendor/complete"
