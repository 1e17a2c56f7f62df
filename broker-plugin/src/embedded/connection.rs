//! One connection from its first packet to its last: moves bytes between TLS and the session,
//! against the clock.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::admission::{Admitted, NotAdmitted, Peer};
use super::lane::{Lane, Room};
use super::listener::{Listener, Seats};
use super::packet::{Codec, Connect, End, Packet, Reason, Terms, UNSUPPORTED_VERSION, Version};
use super::places::Place;
use super::router::{Router, Seat};
use super::session::{REQUEST_PACKET, Session, message};
use super::{KEEP_ALIVE, session::PUBLISHES};
use crate::access::Access;
use crate::meter::{Budget, Rate};

/// What a device sends is its owner's business, up to this.
const OPERATIONAL_PACKET: usize = 64 * 1024;

/// Requests that a worker may have unacknowledged, if it takes so many: ours takes as many. What is
/// held back here instead, the worker cannot answer with *busy*.
const WORKER_WINDOW: u16 = 1024;

/// Messages that anybody else may have unacknowledged.
const WINDOW: u16 = 64;

/// The longest CONNECT: a Will and a token have 1 KiB each at most.
const CONNECT_PACKET: usize = 8 * 1024;

/// Bytes that wait to be written before the client is heard again, and before it gets more
/// messages.
const ENOUGH: usize = 16 * 1024;

/// Bytes that are read at once.
const READ: usize = 4096;

/// Packets, and each further 4 KiB of them, that a device or a bootstrapping client is heard with;
/// who sends more is heard later.
const PACE: Rate = Rate::per_second(128, 512);

/// Those of them that a client is heard with however many others are in haste.
pub(super) const CALM: Rate = Rate::per_second(8, 128);

/// What a device's CONNECT costs its client id: TLS and a look at the records.
const CONNECTION: u32 = 16;

/// What an offence costs a device, in packets: two seconds.
const OFFENCE: u32 = 256;

/// What is done of one client's packets before it pays.
const ROUND: u32 = 32;

/// How long a client gets to hear why its connection ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A client that is let in, and all that its connection needs from then on.
pub(super) struct Guest {
    wire: Wire,
    session: Session,
    admitted: Admitted,
    leaving: Leaving,
    pace: Pace,
    keep_alive: Duration,
    recheck: watch::Receiver<()>,
    closing: broadcast::Receiver<()>,
}

impl Listener {
    /// CONNECT and admission; the CONNACK is yet to be written.
    ///
    /// # Errors
    /// Why the connection is to end; the client has been told.
    pub(super) async fn welcome(
        &self,
        stream: TlsStream<TcpStream>,
        peer: Peer,
        network: IpAddr,
        wait: Place,
        deadline: Instant,
        mut closing: broadcast::Receiver<()>,
    ) -> Result<Box<Guest>, End> {
        // From before the first admission, so that no revocation falls between the two.
        let recheck = self.core.recheck.subscribe();
        let mut wire = Wire::new(stream);
        let introduced = tokio::select! {
            introduced = wire.introduction() => introduced,
            () = sleep_until(deadline) => return Err(End::silent("no CONNECT in time")),
            () = wait.turned_out() => return Err(End::turned_out()),
            _ = closing.recv() => return Err(End::shutting_down()),
        };
        let (mut codec, connect) = match introduced {
            Ok(introduced) => introduced,
            Err(Refused { codec, end }) => {
                wire.refuse(codec, &end, &self.terms()).await;
                return Err(end);
            }
        };
        let admitted = match peer.shown_by_a_device() {
            Some(sha256) if !self.shown.allows(sha256, 1, std::time::Instant::now()) => {
                Err(too_often())
            }
            _ => tokio::select! {
                admitted = peer.admit(self.scope.clone(), &connect) => admitted,
                () = wait.turned_out() => return Err(End::turned_out()),
                _ = closing.recv() => return Err(End::shutting_down()),
            },
        };
        let entered = match admitted {
            Ok(admitted) => self.enter(&connect, admitted, network).await,
            Err(refusal) => Err(refusal),
        };
        drop(wait);
        let Entered { admitted, leaving } = match entered {
            Ok(entered) => entered,
            Err(NotAdmitted { code, reason }) => {
                let end = End::new(code, reason);
                wire.refuse(Some(codec), &end, &self.terms()).await;
                return Err(end);
            }
        };
        codec.connack(&mut wire.out, Reason::Success, &self.terms());
        codec.take_up_to(self.longest_packet());
        let (seat, router, requests) =
            (leaving.seat.clone(), self.core.router.clone(), self.core.requests.clone());
        if let Some(will) = connect.will {
            router.keep_will(&seat, message(will, false, std::time::Instant::now()));
        }
        let window = if admitted.access.is_worker() { WORKER_WINDOW } else { WINDOW }
            .min(connect.receive_maximum);
        let keep_alive = match connect.version {
            Version::V3 => Duration::from_secs(connect.keep_alive.into()),
            Version::V5 => KEEP_ALIVE,
        };
        let pace = Pace::of(&admitted.access, network);
        let session = Session::new(codec, admitted.access.clone(), seat, window, router, requests);
        Ok(Box::new(Guest { wire, session, admitted, leaving, pace, keep_alive, recheck, closing }))
    }

    /// Talks MQTT until the connection ends.
    pub(super) async fn entertain(&self, mut guest: Box<Guest>) -> End {
        let Guest { wire, session, admitted, leaving, pace, keep_alive, recheck, closing } =
            &mut *guest;
        let unwelcome = async {
            tokio::select! {
                end = admitted.unwelcome(recheck, &self.core.rechecks) => end,
                () = leaving.turned_out() => End::turned_out(),
                _ = closing.recv() => End::shutting_down(),
            }
        };
        let ended =
            self.exchange(wire, session, &leaving.seat.lane, pace, *keep_alive, unwelcome).await;
        if ended.is_offence() {
            pace.charge_offence(self);
        }
        session.end(&ended, &mut wire.out);
        wire.finish(ended.reason).await;
        ended
    }

    /// Seats an admitted client, after whoever sat there under its client id is gone.
    async fn enter(
        &self,
        connect: &Connect,
        admitted: Admitted,
        network: IpAddr,
    ) -> Result<Entered, NotAdmitted> {
        let access = &admitted.access;
        let busy = || NotAdmitted::refused(Reason::ServerBusy, "all places are taken");
        let mut place = None;
        if let Seats::Strangers(lobby) = &self.seats {
            place = Some(Held::Stranger(lobby.enter(network).ok_or_else(busy)?));
        }
        let now = std::time::Instant::now();
        if access.is_bootstrapping()
            && !self.core.used_ids.allows((&*connect.client).into(), 1, now)
        {
            let reason = "its client id was used before; a bootstrapping client makes one for \
                          each connection";
            return Err(NotAdmitted::refused(Reason::ClientIdentifierNotValid, reason));
        }
        if let Some(client) = access.client().filter(|_| !access.is_bootstrapping())
            && !self.core.clients.allows(client.to_owned(), CONNECTION, now)
        {
            return Err(too_often());
        }
        let (seat, previous) = self
            .core
            .router
            .enter((&*connect.client).into(), Lane::new(room(access), self.backlog.clone()));
        // Whatever happens from here on, who takes the client's place learns that it is free.
        let mut leaving = Leaving { router: self.core.router.clone(), seat, place };
        if let Some(previous) = previous
            && timeout(2 * LAST_WORDS, previous.left()).await.is_err()
        {
            debug!(client = &*leaving.seat.client, "the connection before this one is slow to end");
        }
        // One place is always free for our own workers.
        if let Seats::Identified(seats) = &self.seats
            && !access.is_worker()
        {
            leaving.place =
                Some(Held::Identified(seats.clone().try_acquire_owned().map_err(|_| busy())?));
        }
        Ok(Entered { admitted, leaving })
    }

    /// Reads, answers and delivers until the connection is to end.
    async fn exchange(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        lane: &Lane,
        pace: &mut Pace,
        keep_alive: Duration,
        unwelcome: impl Future<Output = End>,
    ) -> End {
        let mut unwelcome = pin!(unwelcome);
        // MQTT 5 §3.1.2-22; and as long for whoever does not read.
        let patience = keep_alive + keep_alive / 2;
        let mut heard = Instant::now();
        // For the CONNECT, and what the client owes from earlier connections.
        let mut paused_until = Some(pace.spend(1, self))
            .filter(|owed| !owed.is_zero())
            .map(|owed| Instant::now() + owed);
        loop {
            if let Some(end) = lane.ended() {
                return end;
            }
            if paused_until.is_some_and(|until| until <= Instant::now()) {
                // A client that is not heard says nothing.
                (paused_until, heard) = (None, Instant::now());
            }
            // A moment after the start at most; before, nobody would hear a request.
            let is_open = session.is_worker() || self.core.opened.get().is_some();
            if is_open && paused_until.is_none() {
                match self.hear(wire, session, pace) {
                    Ok(pause) => paused_until = (!pause.is_zero()).then(|| Instant::now() + pause),
                    Err(end) => return end,
                }
            }
            session.deliver(&mut wire.out, ENOUGH, std::time::Instant::now());
            let is_writing = !wire.out.is_empty();
            // What a client with a backlog says is read all the same, as far as there is room for
            // it.
            let has_room = wire.input.len() < READ || is_open && wire.out.len() < ENOUGH;
            let may_read = paused_until.is_none() && has_room;
            let unread_until = wire.written + patience;
            tokio::select! {
                // In this order, for clocks and wakers cost more than a look at the socket, and
                // nothing below is urgent while that goes on.
                biased;
                end = &mut unwelcome => return end,
                turn = wire.turn(may_read) => match turn {
                    Ok(Turn::Read) => heard = Instant::now(),
                    Ok(Turn::Wrote) => {}
                    Ok(Turn::Closed) => return End::new(Reason::Success, "the client closed the connection"),
                    Err(error) => return End::new(Reason::Success, error.to_string()),
                },
                () = lane.changed() => {}
                _ = self.core.opened.wait(), if !is_open => {}
                () = sleep_until(paused_until.unwrap_or(heard + patience)) => if paused_until.is_none() {
                    return End::new(Reason::KeepAliveTimeout, "silent for too long");
                },
                () = sleep_until(unread_until), if is_writing => {
                    return End::new(Reason::KeepAliveTimeout, "it does not read what is sent to it");
                }
            }
        }
    }

    /// Does what all packets ask for that are there, as far as answers find room; how long to wait
    /// before the client is heard again.
    fn hear(
        &self,
        wire: &mut Wire,
        session: &mut Session,
        pace: &mut Pace,
    ) -> Result<Duration, End> {
        let mut pause = Duration::ZERO;
        let mut is_all = false;
        while !is_all && pause.is_zero() {
            let mut work = 0;
            while work < ROUND && !is_all {
                let packet =
                    if wire.out.len() < ENOUGH { session.read(&mut wire.input)? } else { None };
                is_all = packet.is_none();
                if let Some((packet, length)) = packet {
                    work += cost(&packet, length);
                    session.receive(packet, &mut wire.out, std::time::Instant::now())?;
                }
            }
            pause = pace.spend(work, self);
        }
        wire.spare();
        Ok(pause)
    }

    fn terms(&self) -> Terms {
        Terms {
            packet: self.longest_packet(),
            keep_alive: u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX),
            is_for_identified: !self.is_for_strangers(),
        }
    }

    fn longest_packet(&self) -> usize {
        if self.is_for_strangers() { REQUEST_PACKET } else { OPERATIONAL_PACKET }
    }
}

fn too_often() -> NotAdmitted {
    NotAdmitted::refused(Reason::ConnectionRateExceeded, "it connects too often")
}

/// A client that has its seat.
struct Entered {
    admitted: Admitted,
    leaving: Leaving,
}

/// What an admitted client takes of what there is; nothing if it is one of our own workers.
enum Held {
    Stranger(Place),
    Identified(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
}

/// Frees what a client has, when dropped, and then tells that its connection has ended.
struct Leaving {
    router: Arc<Router>,
    seat: Seat,
    place: Option<Held>,
}

impl Leaving {
    /// Returns when somebody else needs the place.
    async fn turned_out(&self) {
        match &self.place {
            Some(Held::Stranger(place)) => place.turned_out().await,
            _ => std::future::pending().await,
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.router.leave(&self.seat, true);
        self.place = None;
        self.seat.lane.leave();
    }
}

/// How many messages may wait for a client. A bootstrapping one gets no more replies than it may
/// send requests; a worker that has fallen behind gets some seconds of them; an operator all that
/// is retained, and what many devices say at once.
fn room(access: &Access) -> Room {
    const MIB: usize = 1024 * 1024;
    const SHARE: usize = MIB / 16;
    if access.is_bootstrapping() {
        Room { messages: PUBLISHES as usize, bytes: MIB, share: SHARE }
    } else if access.is_worker() {
        Room { messages: 4096, bytes: 16 * MIB, share: 16 * MIB }
    } else if access.client().is_some() {
        Room { messages: 256, bytes: MIB, share: SHARE }
    } else {
        Room { messages: 128 * 1024, bytes: 64 * MIB, share: MIB }
    }
}

/// What a packet costs: one, and one for each further 4 KiB or filter.
fn cost(packet: &Packet, length: usize) -> u32 {
    let filters = match packet {
        Packet::Subscribe(_, filters) => filters.len(),
        Packet::Unsubscribe(_, filters) => filters.len(),
        _ => 1,
    };
    u32::try_from(filters + length / 4096).unwrap_or(u32::MAX)
}

/// Who pays over all its connections.
enum Payer {
    Network(IpAddr),
    Client(String),
}

/// Who pays for the work that a client makes.
enum Pace {
    /// Ours, and the operator's.
    Free,
    /// The connection, and all that are in haste; and the network or the client id, over all its
    /// connections.
    Paid { own: Budget, calm: Budget, payer: Payer },
}

impl Pace {
    fn of(access: &Access, network: IpAddr) -> Self {
        match access.client() {
            None => Self::Free,
            Some(client) => Self::Paid {
                own: Budget::default(),
                calm: Budget::default(),
                payer: match access.is_bootstrapping() {
                    true => Payer::Network(network),
                    false => Payer::Client(client.to_owned()),
                },
            },
        }
    }

    fn spend(&mut self, work: u32, listener: &Listener) -> Duration {
        let now = std::time::Instant::now();
        match self {
            Self::Paid { own, calm, payer } if work > 0 => {
                let (shared, is_calm) = match payer {
                    Payer::Network(network) => (
                        listener.core.networks.spend(*network, work, now),
                        calm.allows(work, CALM, now),
                    ),
                    Payer::Client(client) => (
                        listener.core.clients.spend(client.clone(), work, now),
                        listener.core.calm.allows(client.clone(), work, now),
                    ),
                };
                let rush =
                    if is_calm { Duration::ZERO } else { listener.rush.spend((), work, now) };
                own.spend(work, PACE, now).max(shared).max(rush)
            }
            _ => Duration::ZERO,
        }
    }

    /// A device that is cut for what it did comes back seldom. Its network is not charged, for many
    /// others may be in it.
    fn charge_offence(&self, listener: &Listener) {
        if let Self::Paid { payer: Payer::Client(client), .. } = self {
            listener.core.clients.spend(client.clone(), OFFENCE, std::time::Instant::now());
        }
    }
}

/// What happened on the wire.
enum Turn {
    Read,
    Wrote,
    Closed,
}

/// A CONNECT that cannot be accepted, whoever sent it.
struct Refused {
    /// If the version is known.
    codec: Option<Codec>,
    end: End,
}

/// TLS, and what was read and is to be written.
struct Wire {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    out: BytesMut,
    is_flushed: bool,
    /// When something was written last, or there was nothing to write.
    written: Instant,
}

impl Wire {
    fn new(stream: TlsStream<TcpStream>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            out: BytesMut::new(),
            is_flushed: true,
            written: Instant::now(),
        }
    }

    /// The first packet, which has to be a CONNECT.
    async fn introduction(&mut self) -> Result<(Codec, Box<Connect>), Refused> {
        let mut codec = None;
        loop {
            if codec.is_none() {
                codec = Codec::detect(&self.input, CONNECT_PACKET)
                    .map_err(|end| Refused { codec: None, end })?;
            }
            if let Some(mut known) = codec.take() {
                match known.read(&mut self.input) {
                    Ok(Some((Packet::Connect(connect), _))) => {
                        self.spare();
                        return Ok((known, connect));
                    }
                    Ok(Some(_)) => {
                        let end = End::new(Reason::ProtocolError, "the first packet is no CONNECT");
                        return Err(Refused { codec: None, end });
                    }
                    Ok(None) => codec = Some(known),
                    Err(end) => return Err(Refused { codec: Some(known), end }),
                }
            }
            let closed = match self.turn(true).await {
                Ok(Turn::Closed) => "closed before a CONNECT".to_owned(),
                Ok(_) => continue,
                Err(error) => error.to_string(),
            };
            return Err(Refused { codec: None, end: End::new(Reason::Success, closed) });
        }
    }

    /// Answers a CONNECT with its refusal, as far as the client can be told.
    async fn refuse(&mut self, codec: Option<Codec>, end: &End, terms: &Terms) {
        match codec {
            Some(mut codec) => codec.connack(&mut self.out, end.reason, terms),
            None if end.reason == Reason::UnsupportedProtocolVersion => {
                self.out.extend_from_slice(UNSUPPORTED_VERSION);
            }
            None => {}
        }
        self.finish(end.reason).await;
    }

    /// Writes and, if it `may_read`, reads; returns as soon as anything was done.
    async fn turn(&mut self, may_read: bool) -> io::Result<Turn> {
        if self.out.is_empty() {
            self.written = Instant::now();
        }
        poll_fn(|context| {
            let mut stream = Pin::new(&mut self.stream);
            let mut has_written = false;
            while !self.out.is_empty() {
                match stream.as_mut().poll_write(context, &self.out) {
                    Poll::Ready(written) => {
                        self.out.advance(written?);
                        self.is_flushed = false;
                        self.written = Instant::now();
                        has_written = true;
                    }
                    Poll::Pending => break,
                }
            }
            if !self.is_flushed
                && let Poll::Ready(flushed) = stream.as_mut().poll_flush(context)
            {
                flushed?;
                self.is_flushed = true;
            }
            if may_read {
                let mut space = [MaybeUninit::uninit(); READ];
                let mut read = ReadBuf::uninit(&mut space);
                if let Poll::Ready(done) = stream.poll_read(context, &mut read) {
                    done?;
                    self.input.extend_from_slice(read.filled());
                    return Poll::Ready(Ok(if read.filled().is_empty() {
                        Turn::Closed
                    } else {
                        Turn::Read
                    }));
                }
            }
            if has_written { Poll::Ready(Ok(Turn::Wrote)) } else { Poll::Pending }
        })
        .await
    }

    /// Gives back buffers that are not in use: most connections are silent most of the time.
    fn spare(&mut self) {
        for buffer in [&mut self.input, &mut self.out] {
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Writes what is left and ends TLS, if the client takes it in time. Some of what the client is
    /// still sending is read, for otherwise the kernel would throw away our last words (RFC 1122
    /// §4.2.2.13); but somebody waits for the place of one that was taken over.
    async fn finish(&mut self, reason: Reason) {
        let last_words = async {
            self.stream.write_all(&self.out).await?;
            self.stream.shutdown().await?;
            let mut space = [0; READ];
            let mut left = if reason == Reason::SessionTakenOver { 0 } else { ENOUGH };
            while left > 0 {
                match self.stream.read(&mut space).await? {
                    0 => break,
                    read => left = left.saturating_sub(read),
                }
            }
            io::Result::Ok(())
        };
        tokio::select! {
            _ = last_words => {}
            () = sleep(LAST_WORDS) => {}
        }
    }
}
