//! A broker and CA in one. It answers as a test says, and takes one connection at a time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, Login, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::mqttbytes::{self, QoS};
use assay_wire::{Reply, ReplyBody, Request, RequestBody, Topic};
use bytes::BytesMut;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Listens until the process ends.
pub(crate) struct FakeCa {
    port: u16,
    heard: Arc<Mutex<Heard>>,
}

/// What clients said, in their order.
#[derive(Clone, Default)]
pub(crate) struct Heard {
    /// Client id, and user name and password if there were any.
    pub(crate) logins: Vec<(String, Option<(String, String)>)>,
    pub(crate) requests: Vec<RequestBody>,
    /// What was published on topics that are not for requests.
    pub(crate) published: Vec<(String, Vec<u8>)>,
}

impl FakeCa {
    /// Answers requests without TLS; a request without an answer ends the connection.
    pub(crate) fn start(
        mut answer: impl FnMut(&RequestBody) -> Option<ReplyBody> + Send + 'static,
    ) -> Self {
        Self::listen(move |socket, heard| {
            _ = serve(socket, heard, ConnectReturnCode::Success, &mut answer)
        })
    }

    /// Answers CONNECT over TLS, and acknowledges what is published.
    pub(crate) fn operational(tls: ServerConfig, code: ConnectReturnCode) -> Self {
        let tls = Arc::new(tls);
        Self::listen(move |socket, heard| {
            let connection = ServerConnection::new(Arc::clone(&tls)).unwrap();
            _ = serve(StreamOwned::new(connection, socket), heard, code, &mut |_| None);
        })
    }

    fn listen(mut serve: impl FnMut(TcpStream, &Mutex<Heard>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = Self { port, heard: Arc::default() };
        let heard = Arc::clone(&this.heard);
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                serve(socket, &heard);
            }
        });
        this
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://localhost:{}", self.port)
    }

    pub(crate) fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    /// The kinds of request since the last call.
    pub(crate) fn take_requests(&self) -> Vec<&'static str> {
        let kind = |request| match request {
            RequestBody::Challenge(_) => "challenge",
            RequestBody::Certify(_) => "certify",
            RequestBody::Enroll(_) => "enroll",
            RequestBody::Confirm(_) => "confirm",
            RequestBody::Register(_) => "register",
            RequestBody::Ping => "ping",
            RequestBody::Renew(_) => "renew",
            RequestBody::Adopt(_) => "adopt",
            RequestBody::Rekey(_) => "rekey",
        };
        self.heard.lock().unwrap().requests.drain(..).map(kind).collect()
    }
}

fn serve(
    mut client: impl Read + Write,
    heard: &Mutex<Heard>,
    code: ConnectReturnCode,
    answer: &mut dyn FnMut(&RequestBody) -> Option<ReplyBody>,
) -> Option<()> {
    let mut received = BytesMut::new();
    loop {
        match read(&mut client, &mut received)? {
            Packet::Connect(connect, _, login) => {
                let login = login.map(|Login { username, password }| (username, password));
                heard.lock().unwrap().logins.push((connect.client_id, login));
                write(
                    &mut client,
                    Packet::ConnAck(ConnAck { session_present: false, code, properties: None }),
                )?;
            }
            Packet::Subscribe(subscribe) => {
                let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
                write(
                    &mut client,
                    Packet::SubAck(SubAck { pkid: subscribe.pkid, return_codes, properties: None }),
                )?;
            }
            Packet::Publish(publish) => {
                write(&mut client, Packet::PubAck(PubAck::new(publish.pkid, None)))?;
                let topic = String::from_utf8(publish.topic.to_vec()).ok()?;
                let Some(Topic::Request(scope, id)) = Topic::parse(&topic) else {
                    heard.lock().unwrap().published.push((topic, publish.payload.to_vec()));
                    continue;
                };
                let request = Request::decode(&publish.payload).unwrap();
                heard.lock().unwrap().requests.push(request.body.clone());
                let reply = Reply { id: request.id, body: answer(&request.body)? }.encode();
                let topic = Topic::Reply(scope, id).to_string();
                write(
                    &mut client,
                    Packet::Publish(Publish::new(topic, QoS::AtMostOnce, reply, None)),
                )?;
            }
            _ => {}
        }
    }
}

fn read(client: &mut impl Read, received: &mut BytesMut) -> Option<Packet> {
    loop {
        match Packet::read(received, None) {
            Ok(packet) => return Some(packet),
            Err(mqttbytes::Error::InsufficientBytes(_)) => {}
            // A DISCONNECT without a reason ends here too.
            Err(_) => return None,
        }
        let mut buffer = [0; 4096];
        match client.read(&mut buffer).ok()? {
            0 => return None,
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
}

fn write(client: &mut impl Write, packet: Packet) -> Option<()> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, None).unwrap();
    client.write_all(&bytes).ok()?;
    client.flush().ok()
}
