//! A token: its process is started when somebody first needs it, logs in once, and is replaced when
//! it ended.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use crate::connection::{Connection, locked};
use crate::failure::{Cause, Failure};
use crate::message::{Answer, Request};
use crate::pin::{self, pin_of};
use crate::uri::{TokenSelector, Uri};

/// A token, and the thread that looks after its process. That ends when this is dropped.
pub(crate) struct Token {
    state: Arc<State>,
}

/// What two URIs have in common that are about the same token. They share a process and a login.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenName {
    module: PathBuf,
    token: TokenSelector,
    pin_file: Option<PathBuf>,
}

impl TokenName {
    pub(crate) fn of(uri: &Uri) -> Self {
        let pin_file = uri.pin_file().map(Into::into);
        Self { module: uri.module().to_owned(), token: uri.token().clone(), pin_file }
    }
}

struct State {
    uri: Uri,
    phase: Mutex<Phase>,
    changed: Condvar,
}

enum Phase {
    /// Nobody needed it yet.
    Idle,
    /// It was not tried yet, or worked until just now.
    Connecting,
    /// Somebody is asked for the PIN, and may take any time.
    Asking,
    /// The number of the connection, and itself.
    Ready(u64, Arc<Connection>),
    /// It is tried again after a while.
    Down(Failure),
    /// It is not tried again.
    GivenUp(Failure),
    /// Nobody needs it any more.
    Dropped,
}

impl Token {
    pub(crate) fn new(uri: &Uri) -> Self {
        let (phase, changed) = (Mutex::new(Phase::Idle), Condvar::new());
        Self { state: Arc::new(State { uri: uri.clone(), phase, changed }) }
    }

    /// Asks it. Returns the number of the connection, too.
    ///
    /// # Errors
    /// It is down, or was not ready within `patience`, or then did not answer `within` that time.
    pub(crate) fn ask(
        &self,
        request: &Request,
        patience: Duration,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let until = Instant::now() + patience;
        let (number, connection) = self.connection_after(0, until)?;
        let deadline = Instant::now() + within;
        match connection.ask(request, deadline) {
            // The library's process may have been killed. To sign twice does no harm.
            Err(Failure { cause: Cause::Ended, .. }) => {
                let (_, connection) = self.connection_after(number, until)?;
                connection.ask(request, deadline)
            }
            answer => answer.inspect_err(|failure| fail(&connection, failure)),
        }
    }

    /// A connection with a higher number than this.
    fn connection_after(
        &self,
        last: u64,
        until: Instant,
    ) -> Result<(u64, Arc<Connection>), Failure> {
        let mut phase = locked(&self.state.phase);
        loop {
            match &*phase {
                Phase::Ready(number, connection) if *number > last => {
                    return Ok((*number, Arc::clone(connection)));
                }
                Phase::Down(failure) | Phase::GivenUp(failure) => return Err(failure.clone()),
                Phase::Idle => {
                    *phase = Phase::Connecting;
                    let state = Arc::clone(&self.state);
                    let keeper = thread::Builder::new().name("pkcs11-token".to_owned());
                    if let Err(error) = keeper.spawn(move || state.keep()) {
                        *phase = Phase::Idle;
                        return Err(Failure::new(Cause::Token, error));
                    }
                }
                Phase::Asking => {
                    let waited = self.state.changed.wait(phase);
                    phase = waited.unwrap_or_else(PoisonError::into_inner);
                }
                Phase::Connecting | Phase::Ready(..) | Phase::Dropped => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Failure::new(Cause::Slow, "it is being opened"));
                    }
                    let waited = self.state.changed.wait_timeout(phase, left);
                    phase = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// The library's process, if there is one.
    pub(crate) fn process_id(&self) -> Option<u32> {
        match &*locked(&self.state.phase) {
            Phase::Ready(_, connection) => Some(connection.process_id()),
            _ => None,
        }
    }
}

/// Most errors are cured by a new process and a login, e.g. those of a token that was reset or taken
/// out (PKCS #11 v2.40 §5.1.2, §5.1.3), so each is treated so.
fn fail(connection: &Connection, failure: &Failure) {
    if failure.cause == Cause::Token {
        connection.end(failure.clone());
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *locked(&self.state.phase), Phase::Dropped);
        self.state.changed.notify_all();
        if let Phase::Ready(_, connection) = before {
            connection.end(Failure::new(Cause::Ended, "it is not needed any more"));
        }
    }
}

impl State {
    /// Keeps it connected until it is dropped or refuses the PIN.
    fn keep(&self) {
        let token = self.uri.token();
        let mut pause = SHORTEST;
        for number in 1.. {
            let began = Instant::now();
            let ended = match self.open() {
                Ok(connection) => {
                    info!(%token, process = connection.process_id(), "token opened");
                    if !self.turn_to(Phase::Ready(number, Arc::clone(&connection))) {
                        connection.end(Failure::new(Cause::Ended, "it is not needed any more"));
                        return;
                    }
                    connection.wait()
                }
                Err(failure) => failure,
            };
            if ended.cause == Cause::PinRefused {
                pin::forget(&self.uri);
                error!(
                    %token,
                    error = %ended,
                    "nothing is signed by this token until the PIN is right and the CA rereads its \
                     files (SIGHUP) or is restarted"
                );
                self.turn_to(Phase::GivenUp(ended));
                return;
            }
            if matches!(*locked(&self.phase), Phase::Dropped) {
                return;
            }
            let has_worked = began.elapsed() > STEADY;
            pause = if has_worked { SHORTEST } else { (2 * pause).min(LONGEST) };
            warn!(%token, error = %ended, retry_in = ?pause, "token cannot be used");
            // Whoever waits for a process that was only killed need not be sent away.
            let is_next = if has_worked && ended.cause == Cause::Ended {
                self.turn_to(Phase::Connecting)
            } else {
                self.turn_to(Phase::Down(ended))
            };
            if !is_next || !self.sleep(pause) {
                return;
            }
        }
    }

    fn open(&self) -> Result<Arc<Connection>, Failure> {
        let connection = Connection::start()?;
        self.log_in(&connection).inspect_err(|failure| connection.end(failure.clone()))?;
        Ok(connection)
    }

    fn log_in(&self, connection: &Connection) -> Result<(), Failure> {
        let uri = &self.uri;
        let deadline = Instant::now() + OPENING;
        let module = uri.module().to_string_lossy().into_owned();
        let open = Request::Open(module, uri.token().clone());
        let Answer::Opened(opened) = connection.ask(&open, deadline)? else {
            return Err(unexpected());
        };
        if !opened.needs_login {
            return Ok(());
        }
        if opened.is_last_try {
            let advice = "one more wrong PIN locks the token, or it is locked; log in with its \
                          vendor's program first";
            return Err(Failure::new(Cause::PinRefused, advice));
        }
        if pin::asks_somebody(uri) {
            self.turn_to(Phase::Asking);
        }
        let mut login = Request::Login(pin_of(uri)?.to_vec());
        let answer = connection.ask(&login, Instant::now() + OPENING);
        if let Request::Login(pin) = &mut login {
            zeroize::Zeroize::zeroize(pin);
        }
        match answer? {
            Answer::LoggedIn => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Returns whether the token is needed still.
    fn turn_to(&self, next: Phase) -> bool {
        let mut phase = locked(&self.phase);
        if matches!(*phase, Phase::Dropped) {
            return false;
        }
        *phase = next;
        self.changed.notify_all();
        true
    }

    /// The same.
    fn sleep(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut phase = locked(&self.phase);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if matches!(*phase, Phase::Dropped) {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(phase, left);
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

pub(crate) fn unexpected() -> Failure {
    Failure::new(Cause::Token, "its process answered something else")
}

/// A library may look for its token in a network.
const OPENING: Duration = Duration::from_secs(20);
/// A process that worked for so long is replaced at once when it ends.
const STEADY: Duration = Duration::from_secs(1);
/// The pauses between attempts: from one that devices hardly notice to one that costs nothing.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
