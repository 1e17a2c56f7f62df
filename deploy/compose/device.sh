#!/bin/sh
# A laboratory device: a software TPM and the agent, which has itself provisioned with $FLOW and
# then publishes for ever.
set -eu
umask 077
root=/var/lib/assay-public/root.pem tpm=/var/lib/swtpm
child='' swtpm=''

# In the background and waited for, so that a signal is heard at once.
run() {
    "$@" &
    child=$!
    wait "$child"
}
trap 'kill $child $swtpm 2> /dev/null || true; exit 143' INT TERM

[ -e "$tpm/tpm2-00.permall" ] || echo 'waiting for the manufacturer to make the TPM'
until [ -e "$tpm/tpm2-00.permall" ]; do run sleep 1; done
[ -e "$root" ] || echo 'waiting for the root certificate of the CA'
until [ -e "$root" ]; do run sleep 1; done

# The same container is the same power supply: it takes the TPM along. Without a log, which has a
# line for each connection.
swtpm socket --tpm2 --flags not-need-init,startup-clear --tpmstate "dir=$tpm" --log file=/dev/null \
    --server type=unixio,path=/tmp/tpm --ctrl type=unixio,path=/tmp/tpm-control &
swtpm=$!
until [ -S /tmp/tpm ]; do kill -0 "$swtpm" && run sleep 0.1; done

agent() {
    # Without its TPM this device is of no use; the restart policy brings both back.
    kill -0 "$swtpm" 2> /dev/null || { echo 'the software TPM has ended' >&2; exit 1; }
    command=$1 port=$2
    shift 2
    # What it did is on stderr; the path of the certificate on stdout is for scripts.
    run assay-device "$command" --broker "mqtts://broker:$port" --ca-root "$root" \
        --tcti swtpm:path=/tmp/tpm --state /var/lib/assay/state "$@" > /dev/null
}

# However often it fails: an attempt ends after a minute, so that the pauses between its tries stay
# short.
provision() {
    until agent provision 8883 --flow "$FLOW" --deadline 60 "$@"; do
        run sleep 5
    done
}

provision
reading=0
while run sleep 3; do
    reading=$((reading + 1))
    status=0
    agent publish 8884 --topic telemetry --message "{\"reading\":$reading}" || status=$?
    case $status in
        0) ;;
        # Refused: the CA may have superseded or lost what this device has, and gives it anew.
        3) run sleep 5; provision --again ;;
        # Its certificate may have expired, or its TPM may have been cleared; what is good is kept
        # without a question.
        *) provision ;;
    esac
done
