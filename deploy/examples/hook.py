#!/usr/bin/env python3
"""A service that decides which devices an Assay CA admits: an example of a hook.

It knows the devices of an inventory, a JSON file:

    {"<EK id>": {"device_id": "pump-17", "tags": {"site": "north"}, "configuration": {"interval": 5}},
     "<EK id>": {"refuse": "reported stolen"}}

Every device that is not in the inventory is refused. It needs Python 3.9 and nothing else.
docs/operations.md, "Asking a service of your own", says how the CA finds it.
"""

import argparse
import base64
import hashlib
import hmac
import http.server
import json
import ssl
import time

LONGEST_BODY = 64 * 1024
LONGEST_DELAY = 300  # seconds


def is_signed(headers, body, secret):
    """Whether the CA signed this body, a short while ago (Standard Webhooks)."""
    message_id, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent_at.isdecimal() or abs(time.time() - int(sent_at)) > LONGEST_DELAY:
        return False
    signed = b".".join([message_id.encode(), sent_at.encode(), body])
    expected = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    shown = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(one, f"v1,{expected}") for one in shown)


def decide(question, inventory):
    """The answer about a device: "wish" is admit, recover or renew."""
    entry = inventory.get(question["ek_id"])
    if entry is None:
        return {"decision": "refuse", "reason": "the inventory does not know this TPM"}
    if "refuse" in entry:
        return {"decision": "refuse", "reason": entry["refuse"]}
    # Only a new device can get a name and tags; a document is for when it comes first, too.
    given = entry if question["wish"] == "admit" else {}
    return {"decision": "admit", **given}


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self):
        length = int(self.headers.get("content-length", LONGEST_BODY + 1))
        if length > LONGEST_BODY:
            return self.answer(413, {})
        body = self.rfile.read(length)
        if not is_signed(self.headers, body, self.server.secret):
            return self.answer(401, {})
        with open(self.server.inventory, encoding="utf-8") as file:
            inventory = json.load(file)
        self.answer(200, decide(json.loads(body)["data"], inventory))

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--listen", default="127.0.0.1:9443", help="address and port")
    options.add_argument("--certificate", required=True, help="of this service, with its chain")
    options.add_argument("--key", required=True, help="of that certificate")
    options.add_argument("--client-ca", required=True, help="root.pem of the CA that may ask")
    options.add_argument("--secret-file", required=True, help="the same as the CA's")
    options.add_argument("--inventory", required=True, help="read anew for each question")
    options = options.parse_args()

    address, port = options.listen.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((address, int(port)), Service)
    server.inventory = options.inventory
    with open(options.secret_file, encoding="ascii") as file:
        server.secret = base64.b64decode(file.read().strip().removeprefix("whsec_"))
    # Only whoever has a certificate of the CA's root gets as far as a question.
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.client_ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(options.certificate, options.key)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    print(f"listening on {address}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
