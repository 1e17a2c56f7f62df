//! The process with a vendor's library: it does what it is asked for over a socket, on several
//! threads with a session each, and ends when the other side is gone.
//!
//! It trusts the side that started it. It reads no file, but its library may do anything.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism as Ck;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::{Cause, Failure};
use crate::message::{Answer, KeyKind, Mechanism, Opened, PublicKey, Request, receive, send};
use crate::uri::{KeySelector, TokenSelector};

/// The argument that makes a program of ours this process.
pub const MODULE_COMMAND: &str = "pkcs11-module";

/// Serves the other end of the socket that is standard input. Returns if that is none; otherwise the
/// process ends with the other side.
pub fn run_module() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assay {MODULE_COMMAND} is started by assay alone: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    // These reach a whole group of processes. The one that started us finishes its work first.
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let _is_a_socket = socket.peer_addr()?;
    let end = socket.try_clone()?;
    thread::spawn(move || end_with(&end));
    let desk = Desk {
        requests: Mutex::new(BufReader::new(socket.try_clone()?)),
        answers: Mutex::new(socket),
        token: OnceLock::new(),
        keys: Mutex::default(),
    };
    thread::scope(|scope| {
        for _ in 0..SESSIONS {
            scope.spawn(|| desk.work());
        }
    });
    Ok(())
}

/// Ends this process when the other side is gone, even if the library is stuck, and without its exit
/// handlers.
fn end_with(socket: &UnixStream) {
    let mut ends = [PollFd::new(socket, PollFlags::RDHUP)];
    while poll(&mut ends, None).is_err() {}
    _ = kill_process(getpid(), Signal::KILL);
}

/// What the threads share.
struct Desk {
    requests: Mutex<BufReader<UnixStream>>,
    answers: Mutex<UnixStream>,
    token: OnceLock<Token>,
    /// The private and secret keys that were found.
    keys: Mutex<HashMap<(Kind, KeySelector), ObjectHandle>>,
}

/// What is looked for under a name. A private and a secret key may have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Private,
    Secret,
}

struct Token {
    library: Pkcs11,
    slot: Slot,
    /// PKCS #11 logs a process in, not a session; and out, once the last one is closed.
    logged_in: Mutex<Option<Session>>,
}

impl Desk {
    fn work(&self) {
        let mut session = None;
        loop {
            let next = receive(&mut *locked(&self.requests));
            let Ok((number, request)) = next else { return };
            let answer = self.answer(request, &mut session).unwrap_or_else(Answer::Failed);
            if send(&mut *locked(&self.answers), number, &answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request, session: &mut Option<Session>) -> Result<Answer, Failure> {
        if let Request::Open(module, selector) = request {
            let (token, opened) = Token::open(&module, &selector)?;
            _ = self.token.set(token);
            return Ok(Answer::Opened(opened));
        }
        let token = self.token.get();
        let token = token.ok_or_else(|| Failure::new(Cause::Module, "it is not loaded yet"))?;
        match request {
            Request::Open(..) => unreachable!("returned above"),
            Request::Login(pin) => {
                token.log_in(pin)?;
                return Ok(Answer::LoggedIn);
            }
            Request::Generate(kind, key) => {
                let session = token.library.open_rw_session(token.slot).map_err(failed)?;
                return generate(&session, kind, &key).map(Answer::Key);
            }
            Request::GenerateSecret(key) => {
                let session = token.library.open_rw_session(token.slot).map_err(failed)?;
                return generate_secret(&session, &key).map(|()| Answer::Made);
            }
            Request::Find(_) | Request::Sign(..) | Request::Mac(..) => {}
        }
        let session = match session {
            Some(session) => session,
            None => session.insert(token.library.open_ro_session(token.slot).map_err(failed)?),
        };
        match request {
            Request::Find(key) => {
                let handle = self.find(session, Kind::Private, &key)?;
                public_of(session, handle).map(Answer::Key)
            }
            Request::Sign(key, mechanism, data) => {
                let handle = self.find(session, Kind::Private, &key)?;
                let mechanism = match mechanism {
                    Mechanism::Ecdsa => Ck::Ecdsa,
                    Mechanism::RsaPkcs => Ck::RsaPkcs,
                };
                session.sign(&mechanism, handle, &data).map(Answer::Signature).map_err(failed)
            }
            Request::Mac(key, message) => {
                let handle = self.find(session, Kind::Secret, &key)?;
                let mac = session.sign(&Ck::Sha256Hmac, handle, &message);
                mac.map(Answer::Signature).map_err(failed)
            }
            Request::Open(..)
            | Request::Login(_)
            | Request::Generate(..)
            | Request::GenerateSecret(_) => unreachable!("answered above"),
        }
    }

    /// The key, which is looked for once.
    fn find(
        &self,
        session: &Session,
        kind: Kind,
        key: &KeySelector,
    ) -> Result<ObjectHandle, Failure> {
        if let Some(known) = locked(&self.keys).get(&(kind, key.clone())) {
            return Ok(*known);
        }
        let class = match kind {
            Kind::Private => ObjectClass::PRIVATE_KEY,
            Kind::Secret => ObjectClass::SECRET_KEY,
        };
        let found = session.find_objects(&template(class, key));
        let handle = match found.map_err(failed)?[..] {
            [handle] => handle,
            [] => return Err(Failure::new(Cause::NoKey, key)),
            _ => return Err(Failure::new(Cause::SeveralKeys, key)),
        };
        locked(&self.keys).insert((kind, key.clone()), handle);
        Ok(handle)
    }
}

impl Token {
    fn open(module: &str, selector: &TokenSelector) -> Result<(Self, Opened), Failure> {
        let unusable = |error| Failure::new(Cause::Module, format_args!("{module}: {error}"));
        let library = Pkcs11::new(module).map_err(unusable)?;
        let threads = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        library.initialize(threads).map_err(unusable)?;
        let mut found = Vec::new();
        for slot in library.get_slots_with_token().map_err(failed)? {
            // An empty reader must not hide the others.
            let Ok(info) = library.get_token_info(slot) else { continue };
            if info.token_initialized() && is_it(selector, &info) {
                found.push((slot, info));
            }
        }
        let (slot, info) = match &found[..] {
            [one] => one,
            [] => return Err(Failure::new(Cause::NoToken, selector)),
            _ => return Err(Failure::new(Cause::SeveralTokens, selector)),
        };
        let opened = Opened {
            needs_login: info.login_required(),
            is_last_try: info.user_pin_final_try() || info.user_pin_locked(),
        };
        Ok((Self { library, slot: *slot, logged_in: Mutex::default() }, opened))
    }

    fn log_in(&self, pin: Vec<u8>) -> Result<(), Failure> {
        let session = self.library.open_ro_session(self.slot).map_err(failed)?;
        match session.login_with_raw(UserType::User, &RawAuthPin::new(pin.into())) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(failed(error)),
        }
        *locked(&self.logged_in) = Some(session);
        Ok(())
    }
}

fn is_it(selector: &TokenSelector, info: &TokenInfo) -> bool {
    let TokenSelector { label, manufacturer, serial, model } = selector;
    let is = |wanted: &Option<String>, found: &str| {
        wanted.as_ref().is_none_or(|wanted| wanted == found.trim_end_matches([' ', '\0']))
    };
    is(label, info.label())
        && is(manufacturer, info.manufacturer_id())
        && is(serial, info.serial_number())
        && is(model, info.model())
}

fn template(class: ObjectClass, key: &KeySelector) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(class)];
    template.extend(key.object.as_ref().map(|it| Attribute::Label(it.clone().into_bytes())));
    template.extend(key.id.clone().map(Attribute::Id));
    template
}

/// Makes a key that never leaves the token (PKCS #11 v2.40 §4.9).
fn generate(session: &Session, kind: KeyKind, key: &KeySelector) -> Result<PublicKey, Failure> {
    let named = template(ObjectClass::PRIVATE_KEY, key).split_off(1);
    let mut public = [&[Attribute::Token(true), Attribute::Verify(true)], &named[..]].concat();
    let private = [
        &[
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ],
        &named[..],
    ]
    .concat();
    let mechanism = match kind {
        KeyKind::P256 | KeyKind::P384 => {
            let curve = if kind == KeyKind::P256 { P256 } else { P384 };
            public.push(Attribute::EcParams(curve.to_vec()));
            Ck::EccKeyPairGen
        }
        KeyKind::Rsa(bits) => {
            public.push(Attribute::ModulusBits(u64::from(bits).into()));
            public.push(Attribute::PublicExponent(vec![1, 0, 1]));
            Ck::RsaPkcsKeyPairGen
        }
    };
    let (_, private) =
        session.generate_key_pair(&mechanism, &public, &private).map_err(not_made)?;
    public_of(session, private)
}

/// Makes a secret key for HMAC that never leaves the token (PKCS #11 v2.40 §4.10).
fn generate_secret(session: &Session, key: &KeySelector) -> Result<(), Failure> {
    let mut secret = vec![
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::ValueLen(SECRET_BYTES.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ];
    secret.extend(template(ObjectClass::SECRET_KEY, key));
    let made = session.generate_key(&Ck::GenericSecretKeyGen, &secret);
    made.map(drop).map_err(not_made)
}

fn not_made(error: Error) -> Failure {
    match error {
        Error::Pkcs11(RvError::DeviceMemory, _) => Failure::new(Cause::Full, error),
        Error::Pkcs11(RvError::MechanismInvalid | RvError::FunctionNotSupported, _) => {
            Failure::new(Cause::Unfit, error)
        }
        error => failed(error),
    }
}

/// The public half of a private key.
fn public_of(session: &Session, private: ObjectHandle) -> Result<PublicKey, Failure> {
    let wanted = [AttributeType::KeyType, AttributeType::Id, AttributeType::Label];
    let (mut kind, mut key) = (None, KeySelector::default());
    for attribute in session.get_attributes(private, &wanted).map_err(failed)? {
        match attribute {
            Attribute::KeyType(it) => kind = Some(it),
            Attribute::Id(id) if !id.is_empty() => key.id = Some(id),
            Attribute::Label(label) => key.object = String::from_utf8(label).ok(),
            _ => {}
        }
    }
    if key.id.is_some() {
        // It is what both halves have in common (§4.9); labels may differ.
        key.object = None;
    }
    let publics = session.find_objects(&template(ObjectClass::PUBLIC_KEY, &key)).map_err(failed)?;
    let [public] = publics[..] else {
        let text = format!("{} public keys belong to it, not one", publics.len());
        return Err(Failure::new(Cause::OtherKey, text));
    };
    let attributes =
        |wanted: &[AttributeType]| session.get_attributes(public, wanted).map_err(failed);
    let other = |text: &str| Failure::new(Cause::OtherKey, text);
    match kind {
        Some(KeyType::EC) => {
            let (mut curve, mut point) = (Vec::new(), Vec::new());
            for attribute in attributes(&[AttributeType::EcParams, AttributeType::EcPoint])? {
                match attribute {
                    Attribute::EcParams(it) => curve = it,
                    Attribute::EcPoint(it) => point = it,
                    _ => {}
                }
            }
            let (kind, length) = match &curve[..] {
                P256 => (KeyKind::P256, 65),
                P384 => (KeyKind::P384, 97),
                _ => return Err(other("its curve is neither P-256 nor P-384")),
            };
            // An OCTET STRING around the point (§2.3.3); some tokens leave it out.
            let bare = match &point[..] {
                [4, inner, bare @ ..] if usize::from(*inner) == bare.len() => bare,
                bare => bare,
            };
            if bare.len() != length || bare[0] != 4 {
                return Err(other("its point is not an uncompressed one"));
            }
            Ok(PublicKey { kind, bytes: bare.to_vec() })
        }
        Some(KeyType::RSA) => {
            let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
            for attribute in attributes(&[AttributeType::Modulus, AttributeType::PublicExponent])? {
                match attribute {
                    Attribute::Modulus(it) => modulus = it,
                    Attribute::PublicExponent(it) => exponent = it,
                    _ => {}
                }
            }
            PublicKey::rsa(&modulus, &exponent)
                .ok_or_else(|| other("its modulus has not 2048 to 4096 bits"))
        }
        _ => Err(other("it is neither an EC nor an RSA key")),
    }
}

fn failed(error: Error) -> Failure {
    let cause = match &error {
        Error::Pkcs11(
            RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked,
            Function::Login,
        ) => Cause::PinRefused,
        _ => Cause::Token,
    };
    Failure::new(cause, error)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads, with a session each. Tokens in a network work on some requests at once; others take one
/// after another, and then it does no harm.
pub(crate) const SESSIONS: usize = 8;
/// As long as the result of HMAC-SHA-256 (RFC 2104 §3).
const SECRET_BYTES: u64 = 32;
/// OBJECT IDENTIFIER of the curve, in DER (RFC 5480 §2.1.1.1).
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
