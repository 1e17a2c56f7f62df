//! The place where a running script puts its actions and finds the answers.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use assay_wire::{Reply, ReplyBody, Request, RequestBody, RequestId};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::answer::AnswerError;
use crate::certificate::VerifiedPath;
use crate::event::{
    Action, Connection, Event, Pinning, ReceivedConfiguration, SealedBox, Traffic, Trouble,
};
use crate::memory::Memory;
use crate::step::Step;
use crate::tpm::{TpmAnswer, TpmFailure, TpmOperation};

/// A machine and its script share a desk. At any time, a script has at most one operation under
/// way, and at most one connection.
#[derive(Clone)]
pub(crate) struct Desk {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    now: Duration,
    actions: VecDeque<Action>,
    /// The answer to the operation under way.
    answer: Option<Event>,
    link: Link,
    /// The request that waits for its reply.
    asked: Option<RequestId>,
    reply: Option<ReplyBody>,
    wake_at: Duration,
    traffic: Traffic,
}

/// The state of the connection.
enum Link {
    Down,
    Connecting,
    Up,
    Lost(Trouble),
}

/// For the machine.
impl Desk {
    pub(crate) fn new(now: Duration) -> Self {
        let inner = Inner {
            now,
            actions: VecDeque::new(),
            answer: None,
            link: Link::Down,
            asked: None,
            reply: None,
            wake_at: Duration::MAX,
            traffic: Traffic::default(),
        };
        Self { inner: Rc::new(RefCell::new(inner)) }
    }

    pub(crate) fn next_action(&self) -> Option<Action> {
        self.inner.borrow_mut().actions.pop_front()
    }

    pub(crate) fn wait_action(&self) -> Action {
        Action::Wait { until: self.inner.borrow().wake_at }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.inner.borrow().traffic
    }

    pub(crate) fn hear(&self, now: Duration, event: Event) {
        let inner = &mut *self.inner.borrow_mut();
        inner.now = inner.now.max(now);
        match (event, &inner.link) {
            (Event::Time, _) => {}
            (Event::Connected, Link::Connecting) => inner.link = Link::Up,
            (Event::Lost(trouble), Link::Connecting | Link::Up) => {
                inner.link = Link::Lost(trouble);
            }
            (Event::Reply(message), _) => inner.hear_reply(&message),
            // The event is of a connection that is gone, or that never was.
            (Event::Connected | Event::Lost(_), _) => {}
            (answer, _) => inner.answer = Some(answer),
        }
    }
}

impl Inner {
    /// Takes the first reply to the request that waits for a reply. Ignores a message that cannot
    /// be read, and a reply to another request, because a broker may deliver a reply twice.
    fn hear_reply(&mut self, message: &[u8]) {
        let Ok(reply) = Reply::decode(message) else { return };
        // A reply with the nil id answers a request whose id the CA could not read. That is this
        // device's request, because nobody else sends requests on this topic.
        if self.asked.is_some_and(|asked| reply.id == asked || reply.id == RequestId::NIL) {
            self.asked = None;
            self.reply = Some(reply.body);
            self.traffic.bytes_received += message.len();
        }
    }
}

/// For scripts: what needs no answer.
impl Desk {
    pub(crate) fn now(&self) -> Duration {
        self.inner.borrow().now
    }

    pub(crate) fn progress(&self, step: Step) {
        self.act(Action::Progress(step));
    }

    pub(crate) fn connect(&self, connection: Connection) {
        self.inner.borrow_mut().link = Link::Connecting;
        self.act(Action::Connect(connection));
    }

    pub(crate) fn has_link(&self) -> bool {
        !matches!(self.inner.borrow().link, Link::Down)
    }

    pub(crate) fn disconnect(&self) {
        if self.has_link() {
            self.inner.borrow_mut().link = Link::Down;
            self.act(Action::Disconnect);
        }
    }

    fn act(&self, action: Action) {
        self.inner.borrow_mut().actions.push_back(action);
    }
}

/// For scripts: operations that need an answer.
impl Desk {
    /// `pick` takes the kind of answer that suits the operation.
    pub(crate) async fn tpm<T>(
        &self,
        operation: TpmOperation,
        pick: impl Fn(TpmAnswer) -> Option<T>,
    ) -> Result<T, TpmFailure> {
        self.run(Action::Tpm(operation), |event| match event {
            Event::Tpm(Ok(answer)) => pick(answer).map(Ok),
            Event::Tpm(Err(failure)) => Some(Err(failure)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn store(&self, memory: Memory) {
        let is_stored = |event| matches!(event, Event::Stored).then_some(());
        self.run(Action::Store(Box::new(memory)), is_stored).await
    }

    pub(crate) async fn verify_path(
        &self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<VerifiedPath, AnswerError> {
        self.run(Action::VerifyPath(chain), |event| match event {
            Event::PathVerified(outcome) => Some(outcome),
            _ => None,
        })
        .await
    }

    pub(crate) async fn pin(&self, root: CertificateDer<'static>) -> Pinning {
        self.run(Action::Pin(root), |event| match event {
            Event::Pinned(pinning) => Some(pinning),
            _ => None,
        })
        .await
    }

    pub(crate) async fn unseal(&self, sealed: SealedBox) -> Option<Zeroizing<Vec<u8>>> {
        self.run(Action::Unseal(sealed), |event| match event {
            Event::Unsealed(contents) => Some(contents),
            _ => None,
        })
        .await
    }

    pub(crate) async fn keep_configuration(
        &self,
        received: ReceivedConfiguration,
    ) -> Result<Option<u64>, String> {
        self.run(Action::Configuration(Box::new(received)), |event| match event {
            Event::Configuration(outcome) => Some(outcome),
            _ => None,
        })
        .await
    }

    pub(crate) async fn digest(&self, bytes: &[u8]) -> [u8; 32] {
        self.run(Action::Digest(bytes.into()), |event| match event {
            Event::Digest(digest) => Some(digest),
            _ => None,
        })
        .await
    }

    pub(crate) async fn draw(&self) -> [u8; 16] {
        self.run(Action::Draw, |event| match event {
            Event::Random(bytes) => Some(bytes),
            _ => None,
        })
        .await
    }

    /// What the device's clock says, in seconds since 1970.
    pub(crate) async fn clock(&self) -> u64 {
        self.run(Action::Clock, |event| match event {
            Event::Clock(seconds) => Some(seconds),
            _ => None,
        })
        .await
    }

    async fn run<T>(&self, action: Action, pick: impl Fn(Event) -> Option<T>) -> T {
        self.inner.borrow_mut().answer = None;
        self.act(action);
        poll_fn(|_| {
            let answer = self.inner.borrow_mut().answer.take();
            answer.and_then(&pick).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// For scripts: the connection. A function that waits does so until the time `until` at most, and
/// returns `None` if this time comes first.
impl Desk {
    /// Waits until the connection is up.
    pub(crate) async fn connected(&self, until: Duration) -> Option<Result<(), Trouble>> {
        self.wait(until, |inner| match &inner.link {
            Link::Up => Some(Ok(())),
            Link::Lost(trouble) => Some(Err(trouble.clone())),
            Link::Down | Link::Connecting => None,
        })
        .await
    }

    pub(crate) fn send(&self, id: RequestId, body: RequestBody) {
        let message = Request { id, body }.encode();
        let inner = &mut *self.inner.borrow_mut();
        inner.asked = Some(id);
        inner.reply = None;
        inner.traffic.requests += 1;
        inner.traffic.bytes_sent += message.len();
        inner.actions.push_back(Action::Send(message));
    }

    /// Waits for the reply to the request that was sent last.
    pub(crate) async fn reply(&self, until: Duration) -> Option<Result<ReplyBody, Trouble>> {
        let outcome = self
            .wait(until, |inner| match (inner.reply.take(), &inner.link) {
                (Some(body), _) => Some(Ok(body)),
                (None, Link::Lost(trouble)) => Some(Err(trouble.clone())),
                (None, _) => None,
            })
            .await;
        self.inner.borrow_mut().asked = None;
        outcome
    }

    pub(crate) async fn sleep(&self, until: Duration) {
        let _: Option<()> = self.wait(until, |_| None).await;
    }

    async fn wait<T>(&self, until: Duration, found: impl Fn(&mut Inner) -> Option<T>) -> Option<T> {
        poll_fn(|_| {
            let inner = &mut *self.inner.borrow_mut();
            let found = found(inner);
            if found.is_some() || inner.now >= until {
                inner.wake_at = Duration::MAX;
                return Poll::Ready(found);
            }
            inner.wake_at = until;
            Poll::Pending
        })
        .await
    }
}
