"""Breaks rules of docs/protocol.md with the MQTT client paho, and prints what the broker made of each."""

import json
import secrets
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

version, port, root, scope, device, token = sys.argv[1:]
V5 = version == "5"
WAIT = 20
TOO_OFTEN = ("connack 0x9f", "connack 0x03")


class Client(mqtt.Client):
    """One connection. What comes back first that is no success is its outcome."""

    def __init__(self, client_id):
        options = {} if V5 else {"clean_session": True}
        super().__init__(client_id=client_id, protocol=int(version), **options)
        self.name, self.outcome, self.done, self.up = client_id, None, threading.Event(), threading.Event()
        self.lost = threading.Event()
        self.tls_set(root)
        self.reconnect_delay_set(WAIT, WAIT)

    def end(self, outcome):
        if self.outcome is None:
            self.outcome = outcome
        self.done.set()

    def open(self, keepalive=30, **properties):
        options = {}
        if V5:
            options = {"clean_start": True, "properties": made(PacketTypes.CONNECT, **properties)}
        self.connect("127.0.0.1", int(port), keepalive=keepalive, **options)
        self.loop_start()
        while not (self.up.wait(0.02) or self.done.is_set() or self.lost.is_set()):
            pass
        return self

    # paho's thread dies if the broker hangs up while it writes, before it has read why.
    def _thread_main(self):
        try:
            super()._thread_main()
        except OSError:
            self.lost.set()

    def close(self):
        # Without waiting for its thread, which takes paho a second.
        self.on_disconnect = None
        self.disconnect()

    # paho keeps the reason code of a PUBACK to itself.
    def _handle_pubackcomp(self, cmd):
        packet = self._in_packet["packet"]
        self.answered(f"puback {packet[2]:#04x}" if len(packet) > 2 else "puback 0x00")
        return super()._handle_pubackcomp(cmd)

    # Nor does it look at a DISCONNECT that has a reason code and no properties.
    def _handle_disconnect(self):
        packet = self._in_packet["packet"]
        self.end(f"cut {packet[0]:#04x}" if packet else "cut")
        return super()._handle_disconnect()

    answered = end


def number(reason):
    return getattr(reason, "value", reason)


def on_connect(client, userdata, flags, reason, properties=None):
    if number(reason) == 0:
        client.up.set()
    else:
        client.end(f"connack {number(reason):#04x}")


def on_subscribe(client, userdata, mid, granted, properties=None):
    client.end("suback " + " ".join(f"{number(reason):#04x}" for reason in granted))


def on_disconnect(client, userdata, reason, properties=None):
    client.end("cut")


def made(packet, **values):
    if not values:
        return None
    properties = Properties(packet)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def client(name):
    new = Client(name)
    new.on_connect, new.on_subscribe, new.on_disconnect = on_connect, on_subscribe, on_disconnect
    if device:
        new.username_pw_set(device, token)
    return new


def fresh():
    return client(device or secrets.token_hex(16))


def opened(**options):
    """A connection that is let in: a device that was cut has to wait."""
    while True:
        c = fresh().open(**options)
        if c.outcome not in TOO_OFTEN and not c.lost.is_set():
            return c
        time.sleep(0.5)


def outcome(client):
    client.done.wait(WAIT)
    client.close()
    return client.outcome


def publish(*arguments, **options):
    """Again if paho did not hear the answer."""
    for _ in range(10):
        c = published(*arguments, **options)
        if not c.lost.is_set():
            return outcome(c)
    return "paho never heard an answer"


def published(topic, payload=b"x", qos=1, retain=False, times=1, open={}, **properties):
    c = opened(**open)
    answers, answered = [], threading.Semaphore(0)

    def note(answer):
        answers.append(answer)
        answered.release()

    c.answered = note
    for count in range(times):
        there = topic.format(client=c.name, count=count)
        c.publish(there, payload, qos, retain, **({"properties": made(PacketTypes.PUBLISH, **properties)} if V5 else {}))
    for _ in range(times):
        while not answered.acquire(timeout=0.02):
            if c.done.is_set() or c.lost.is_set():
                return c
    c.end(answers[-1])
    return c


def subscribe(*filters, qos=1, **properties):
    c = opened()
    topics = [filter.format(client=c.name) for filter in filters]
    if V5:
        options = mqtt.SubscribeOptions(qos=qos)
        c.subscribe([(topic, options) for topic in topics], properties=made(PacketTypes.SUBSCRIBE, **properties))
    else:
        c.subscribe([(topic, qos) for topic in topics])
    return outcome(c)


def connect(c, **options):
    c.open(**options)
    if c.up.is_set():
        c.end("accepted")
    return outcome(c)


def with_will(topic, payload=b"gone"):
    c = fresh()
    c.will_set(topic.format(client=c.name), payload, 1)
    return c


def twice():
    name = secrets.token_hex(16)
    client(name).open().close()
    return connect(client(name))


def taken_over():
    first = opened()
    second = opened()
    told = outcome(first)
    second.close()
    return told


REQUEST, REPLY = f"provision/v1/{scope}/{{client}}/request", f"provision/v1/{scope}/{{client}}/reply"
ANOTHER = f"provision/v1/{scope}/{'0' * 32}"


def as_stranger():
    yield "keeps the rules", connect(fresh())
    yield "another client id", connect(client("pump-17"))
    yield "client id again", twice()
    yield "Will", connect(with_will(REQUEST))
    yield "long CONNECT", connect(with_will(REQUEST, b"x" * 9000))
    yield "keep-alive of 61 s", connect(fresh(), keepalive=61)
    yield "subscribes to its reply", subscribe(REPLY)
    yield "subscribes with QoS 2", subscribe(REPLY, qos=2)
    yield "subscribes to another's reply", subscribe(ANOTHER + "/reply")
    yield "subscribes with a wildcard", subscribe(f"provision/v1/{scope}/+/reply")
    yield "joins the workers", subscribe(f"$share/ca/provision/v1/{scope}/+/request")
    yield "subscribes 65 times", subscribe(*[f"x/{count}" for count in range(65)])
    yield "publishes a request", publish(REQUEST)
    yield "publishes elsewhere", publish(ANOTHER + "/request")
    yield "request with QoS 0", publish(REQUEST, qos=0)
    yield "request with QoS 2", publish(REQUEST, qos=2)
    yield "retained request", publish(REQUEST, retain=True)
    yield "33 requests", publish(REQUEST, times=33)
    yield "packet of 17409 bytes", publish(REQUEST, b"x" * 17409)
    if V5:
        yield "Authentication Method", connect(fresh(), AuthenticationMethod="x")
        yield "small Maximum Packet Size", connect(fresh(), MaximumPacketSize=127)
        yield "subscription identifier", subscribe(REPLY, SubscriptionIdentifier=1)
        yield "topic alias", publish(REQUEST, TopicAlias=1)


def as_device():
    own = f"device/v1/{scope}/{device}"
    yield "keeps the rules", connect(fresh())
    yield "another client id", connect(client("another"))
    wrong = fresh()
    wrong.username_pw_set(device, token.replace("sig=", "sig=A"))
    yield "another token", connect(wrong)
    yield "keep-alive of 241 s", connect(fresh(), keepalive=241)
    yield "Will elsewhere", connect(with_will(own + "/state"))
    yield "Will of 1025 bytes", connect(with_will(own + "/presence", b"x" * 1025))
    yield "Will on its presence", connect(with_will(own + "/presence"))
    yield "subscribes to its tree", subscribe(own + "/#")
    yield "subscribes to all trees", subscribe(f"device/v1/{scope}/#")
    yield "subscribes 65 times", subscribe(*[f"{own}/{count}" for count in range(65)])
    yield "subscribes 17 levels deep", subscribe(own + "/a" * 13)
    yield "publishes unheard", publish(own + "/x")
    yield "publishes to another", publish(f"device/v1/{scope}/another/x")
    yield "publishes to operators", publish(f"fleet/v1/{scope}/{device}/event")
    yield "publishes with QoS 2", publish(own + "/x", qos=2)
    yield "packet of 65537 bytes", publish(own + "/x", b"x" * 65537)
    yield "retains a fifth topic", publish(own + "/{count}", retain=True, times=5)
    yield "retains 1025 bytes", publish(own + "/0", b"x" * 1025, retain=True)
    yield "retained request", publish(REQUEST, retain=True)
    yield "33 requests", publish(REQUEST, times=33)
    yield "connects twice", taken_over()


for case, result in as_device() if device else as_stranger():
    print(json.dumps([case, result]), flush=True)
