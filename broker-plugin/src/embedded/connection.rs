//! One connection from its first packet to its last: moves packets between wire and session, in
//! limited time.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::counted::Counted;
use super::lane::{Lane, Room};
use super::limits::{KEEP_ALIVE, NAMED, OF_BACKEND, OPERATIONAL_KEEP_ALIVE, PUBLISHES};
use super::pace::{Pace, cost};
use super::packet::{Connect, End, Reason, Terms, Version};
use super::router::{Router, Seat};
use super::session::{REQUEST_PACKET, Session, message};
use super::shared::{Entrance, Seats};
use super::wire::{ENOUGH, LAST_WORDS, READ, Refused, Turn, Wire};
use crate::access::{Access, Identity};
use crate::certificate::ClientCertificate;
use crate::doorkeeper::{Admission, Shown};
use crate::places::Place;

/// The longest packet of a device, in bytes. Its content is up to the device's owner.
const OPERATIONAL_PACKET: usize = 64 * 1024;

/// Requests that a worker may have unacknowledged, if it accepts so many; ours does. The worker
/// cannot answer *busy* to a request that is held back here.
const WORKER_WINDOW: u16 = 1024;

/// Messages that any other client may have unacknowledged.
const WINDOW: u16 = 64;

/// What a CONNECT costs a device, in packets: TLS and a look at the record.
const CONNECT: u32 = 16;

/// Packets of one client that are processed before it pays for them.
const ROUND: u32 = 32;

/// The connection of a client that is let in.
pub(super) struct Connection {
    wire: Wire,
    session: Session,
    admission: Admission,
    leaving: Leaving,
    pace: Pace,
    keep_alive: Duration,
    recheck: watch::Receiver<()>,
    closing: broadcast::Receiver<()>,
}

impl Connection {
    /// Reads the CONNECT, and lets the client in. The CONNACK is not written yet.
    ///
    /// # Errors
    /// Why the connection ends. The client has been told.
    pub(super) async fn open(
        entrance: &Entrance,
        stream: TlsStream<TcpStream>,
        certificate: Option<ClientCertificate>,
        network: IpAddr,
        wait: Place,
        deadline: Instant,
        mut closing: broadcast::Receiver<()>,
    ) -> Result<Box<Self>, End> {
        let core = &entrance.core;
        // It begins before the admission, so that no revocation is missed in between.
        let recheck = core.recheck.subscribe();
        let mut wire = Wire::new(stream);
        let introduced = tokio::select! {
            introduced = wire.introduction() => introduced,
            () = sleep_until(deadline) => return Err(End::silent("it sent no CONNECT in time")),
            () = wait.turned_out() => return Err(End::turned_out()),
            _ = closing.recv() => return Err(End::shutting_down()),
        };
        let (mut codec, connect) = match introduced {
            Ok(introduced) => introduced,
            Err(Refused { codec, end }) => {
                wire.refuse(codec, &end, &terms(entrance)).await;
                return Err(end);
            }
        };
        let admitted = if shows_too_often(entrance, certificate.as_ref()) {
            Err(too_often())
        } else {
            tokio::select! {
                admitted = core.desk.admit(
                    shown(entrance, certificate, &connect),
                    &connect,
                    longest_keep_alive(entrance),
                ) => admitted,
                () = wait.turned_out() => return Err(End::turned_out()),
                _ = closing.recv() => return Err(End::shutting_down()),
            }
        };
        let entered = match admitted {
            Ok(admission) => {
                let leaving = enter(entrance, &connect, admission.access(), network).await;
                leaving.map(|leaving| (admission, leaving))
            }
            Err(end) => Err(end),
        };
        drop(wait);
        let (admission, leaving) = match entered {
            Ok(entered) => entered,
            Err(end) => {
                wire.refuse(Some(codec), &end, &terms(entrance)).await;
                return Err(end);
            }
        };
        let keep_alive = keep_alive(&connect, entrance);
        let terms = Terms { keep_alive, ..terms(entrance) };
        codec.connack(&mut wire.out, Reason::Success, &terms);
        codec.take_up_to(longest_packet(entrance));
        let (seat, router, requests) =
            (leaving.seat.clone(), core.router.clone(), core.requests.clone());
        let access = admission.access();
        if let Some(will) = connect.will {
            router.keep_will(&seat, message(will, false, std::time::Instant::now()));
        }
        let window =
            if access.is_worker() { WORKER_WINDOW } else { WINDOW }.min(connect.receive_maximum);
        let keep_alive = Duration::from_secs(keep_alive.into());
        let pace = Pace::of(access, network);
        let session = Session::new(codec, access.clone(), seat, window, router, requests);
        Ok(Self { wire, session, admission, leaving, pace, keep_alive, recheck, closing }.into())
    }

    /// Talks MQTT until the connection ends.
    pub(super) async fn serve(mut self: Box<Self>, entrance: &Entrance) -> End {
        let Self { wire, session, admission, leaving, pace, keep_alive, recheck, closing } =
            &mut *self;
        let unwelcome = async {
            tokio::select! {
                end = entrance.core.desk.unwelcome(admission, recheck) => end,
                () = leaving.turned_out() => End::turned_out(),
                _ = closing.recv() => End::shutting_down(),
            }
        };
        let mut exchange = Exchange { entrance, wire, session, pace };
        let ended = exchange.run(&leaving.seat.lane, *keep_alive, unwelcome).await;
        if ended.is_offence() {
            pace.charge_offence(entrance);
        }
        session.end(&ended, &mut wire.out);
        wire.finish(ended.reason).await;
        ended
    }
}

/// Whether the certificate of one device is shown on too many connections. They are counted by
/// certificate and not by name. Otherwise, somebody who stole the issuing key could use up another
/// device's count.
fn shows_too_often(entrance: &Entrance, certificate: Option<&ClientCertificate>) -> bool {
    certificate.is_some_and(|certificate| {
        matches!(certificate.identity, Identity::Device { .. })
            && !entrance.shown.allows(certificate.sha256, 1, std::time::Instant::now())
    })
}

fn too_often() -> End {
    End::new(Reason::ConnectionRateExceeded, "it connects too often")
}

/// What the client shows to the doorkeeper, which copies a password. The buffer of the CONNECT
/// packet, with the first copy, is dropped when the client is in, but not wiped.
fn shown<'a>(
    entrance: &Entrance,
    certificate: Option<ClientCertificate>,
    connect: &'a Connect,
) -> Shown<'a> {
    match certificate {
        _ if entrance.is_for_strangers() => Shown::Nothing,
        Some(certificate) => Shown::Certificate(certificate),
        None => Shown::Login {
            user_name: connect.user_name.as_deref(),
            password: connect.password.as_deref(),
        },
    }
}

/// Seats an admitted client, after the end of an older connection under its client id.
async fn enter(
    entrance: &Entrance,
    connect: &Connect,
    access: &Access,
    network: IpAddr,
) -> Result<Leaving, End> {
    let core = &entrance.core;
    let busy = || End::new(Reason::ServerBusy, "all places are taken");
    let mut place = None;
    if let Seats::Strangers(lobby) = &entrance.seats {
        place = Some(Held::Stranger(lobby.enter(network).ok_or_else(busy)?));
    }
    let now = std::time::Instant::now();
    if access.is_bootstrapping() && !core.used_ids.allows((&*connect.client).into(), 1, now) {
        let text = "its client id was used before; a bootstrapping client must make a new one for \
                    each connection";
        return Err(End::new(Reason::ClientIdentifierNotValid, text));
    }
    if let Some(device) = access.account().filter(|_| !access.is_bootstrapping())
        && !core.clients.allows(device.to_owned(), CONNECT, now)
    {
        return Err(too_often());
    }
    let lane = Lane::new(room(access), entrance.backlog.clone());
    let (seat, previous) = core.router.enter((&*connect.client).into(), lane);
    // From here on, the seat is freed on every way out, and the next client learns of it.
    let mut leaving = Leaving { router: core.router.clone(), seat, place, counted: None };
    if let Some(previous) = previous
        && timeout(2 * LAST_WORDS, previous.left()).await.is_err()
    {
        debug!(client = &*leaving.seat.client, "the older connection is slow to end");
    }
    if let Some(holder) = access.counted_with() {
        let most = if access.is_backend() { OF_BACKEND } else { NAMED };
        let too_many = || End::new(Reason::ServerBusy, "it has too many connections");
        leaving.counted = Some(core.counted.enter(holder, most).ok_or_else(too_many)?);
    }
    // One place is always free for our own workers.
    if let Seats::Identified(seats) = &entrance.seats
        && !access.is_worker()
    {
        leaving.place =
            Some(Held::Identified(seats.clone().try_acquire_owned().map_err(|_| busy())?));
    }
    Ok(leaving)
}

/// What takes part in reading, answering and delivering.
struct Exchange<'a> {
    entrance: &'a Entrance,
    wire: &'a mut Wire,
    session: &'a mut Session,
    pace: &'a mut Pace,
}

impl Exchange<'_> {
    /// Reads, answers and delivers until the connection is to end.
    async fn run(
        &mut self,
        lane: &Lane,
        keep_alive: Duration,
        unwelcome: impl Future<Output = End>,
    ) -> End {
        let mut unwelcome = pin!(unwelcome);
        // MQTT 5 §3.1.2-22. A client that does not read is given the same time.
        let patience = keep_alive + keep_alive / 2;
        let mut heard = Instant::now();
        // For the CONNECT, and for what the client owes from earlier connections.
        let mut paused_until = Some(self.pace.spend(1, self.entrance))
            .filter(|owed| !owed.is_zero())
            .map(|owed| Instant::now() + owed);
        loop {
            if let Some(end) = lane.ended() {
                return end;
            }
            if paused_until.is_some_and(|until| until <= Instant::now()) {
                // While a client is not heard, it is not silent.
                (paused_until, heard) = (None, Instant::now());
            }
            // Before a worker is there, a request would be lost. A worker is there soon after the
            // start.
            let opened = &self.entrance.core.opened;
            let is_open = self.session.is_worker() || opened.get().is_some();
            if is_open && paused_until.is_none() {
                match self.hear() {
                    Ok(pause) => paused_until = (!pause.is_zero()).then(|| Instant::now() + pause),
                    Err(end) => return end,
                }
            }
            let Self { wire, session, .. } = self;
            session.deliver(&mut wire.out, ENOUGH, std::time::Instant::now());
            let is_writing = !wire.out.is_empty();
            // A client for whom much waits is read all the same, as far as there is room.
            let has_room = wire.input.len() < READ || is_open && wire.out.len() < ENOUGH;
            let may_read = paused_until.is_none() && has_room;
            let unread_until = wire.written + patience;
            tokio::select! {
                // In this order: clocks and wakers cost more than a look at the socket, and nothing
                // below is urgent while the socket is busy.
                biased;
                end = &mut unwelcome => return end,
                turn = wire.turn(may_read) => match turn {
                    Ok(Turn::Read) => heard = Instant::now(),
                    Ok(Turn::Wrote) => {}
                    Ok(Turn::Closed) => return End::silent("it closed the connection"),
                    Err(error) => return End::silent(error.to_string()),
                },
                () = lane.changed() => {}
                _ = opened.wait(), if !is_open => {}
                () = sleep_until(paused_until.unwrap_or(heard + patience)) => {
                    if paused_until.is_none() {
                        return End::new(Reason::KeepAliveTimeout, "it was silent for too long");
                    }
                }
                () = sleep_until(unread_until), if is_writing => {
                    let text = "it does not read what is sent to it";
                    return End::new(Reason::KeepAliveTimeout, text);
                }
            }
        }
    }

    /// Processes all packets that have arrived, as far as there is room for the answers. Returns
    /// how long to wait before the client is heard again.
    fn hear(&mut self) -> Result<Duration, End> {
        let Self { entrance, wire, session, pace } = self;
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
            pause = pace.spend(work, entrance);
        }
        wire.spare();
        Ok(pause)
    }
}

fn terms(entrance: &Entrance) -> Terms {
    Terms {
        packet: longest_packet(entrance),
        keep_alive: longest_keep_alive(entrance),
        is_for_identified: !entrance.is_for_strangers(),
    }
}

/// What applies to this client, in seconds: on the operational listener what it asks for, up to the
/// longest; for strangers the broker's own (MQTT 5 §3.2.2.3.14). Another one of MQTT 3.1.1 is not
/// let in.
fn keep_alive(connect: &Connect, entrance: &Entrance) -> u16 {
    let longest = longest_keep_alive(entrance);
    let is_ours = connect.version == Version::V5 && entrance.is_for_strangers();
    if is_ours || !(1..=longest).contains(&connect.keep_alive) {
        return longest;
    }
    connect.keep_alive
}

/// In seconds.
fn longest_keep_alive(entrance: &Entrance) -> u16 {
    let longest = if entrance.is_for_strangers() { KEEP_ALIVE } else { OPERATIONAL_KEEP_ALIVE };
    u16::try_from(longest.as_secs()).unwrap_or(u16::MAX)
}

fn longest_packet(entrance: &Entrance) -> usize {
    if entrance.is_for_strangers() { REQUEST_PACKET } else { OPERATIONAL_PACKET }
}

/// The place that an admitted client takes. Our own workers take none.
enum Held {
    Stranger(Place),
    Identified(#[expect(dead_code, reason = "held until it is dropped")] OwnedSemaphorePermit),
}

/// When dropped, frees the client's seat and place, and then says that its connection has ended.
struct Leaving {
    router: Arc<Router>,
    seat: Seat,
    place: Option<Held>,
    counted: Option<Counted>,
}

impl Leaving {
    /// Returns when another connection needs the place.
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
        self.counted = None;
        self.seat.lane.leave();
    }
}

/// How many messages may wait for a client.
///
/// | client | messages |
/// |---|---|
/// | bootstrapping | as many replies as it may send requests |
/// | worker | some seconds' worth of requests |
/// | device | some |
/// | operator, backend | all that is retained, and what many devices publish at once |
fn room(access: &Access) -> Room {
    const MIB: usize = 1024 * 1024;
    const SHARE: usize = MIB / 16;
    if access.is_bootstrapping() {
        Room { messages: PUBLISHES as usize, bytes: MIB, share: SHARE }
    } else if access.is_worker() {
        Room { messages: 4096, bytes: 16 * MIB, share: 16 * MIB }
    } else if access.account().is_some() {
        Room { messages: 256, bytes: MIB, share: SHARE }
    } else {
        Room { messages: 128 * 1024, bytes: 64 * MIB, share: MIB }
    }
}
