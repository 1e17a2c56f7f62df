//! Where local clients connect: a loopback address, or a socket in the file system.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket};

/// Where the tunnel listens. It has no passwords: everybody who can connect there speaks as the
/// device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A loopback address. Every user and every program of the machine can connect to it.
    Loopback(SocketAddr),
    /// A Unix socket. Its owner and its group can connect to it.
    Socket(PathBuf),
}

/// The text is not an address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddressError {
    /// It is neither form.
    #[error("expected an address such as 127.0.0.1:1883 or [::1]:1883, or unix:/path")]
    Malformed,
    /// It is an address of the network.
    #[error(
        "{0} is not a loopback address: everybody in the network could speak as this device. Use \
         127.0.0.1 or [::1], or unix:/path"
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Socket(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => Ok(Self::Loopback(address)),
            Ok(address) => Err(ListenAddressError::NotLoopback(address)),
            Err(_) => Err(ListenAddressError::Malformed),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.fmt(f),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The stream of a local client.
pub(super) trait Local: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Local for T {}

/// Accepts local clients. The socket's file goes with it.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(super) fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Loopback(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            ListenAddress::Socket(path) => Ok(Self::Unix(bind_socket(path)?, path.clone())),
        }
    }

    /// Where it listens. If the port was 0, this is the port that the system chose.
    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => Ok(ListenAddress::Loopback(listener.local_addr()?)),
            Self::Unix(_, path) => Ok(ListenAddress::Socket(path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Box<dyn Local>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // It fails if the client is gone already, and then its task finds out.
                _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            _ = fs::remove_file(path);
        }
    }
}

/// Nobody can connect before the permissions are there, because the socket does not listen yet.
///
/// Whoever can rename files in the directory could put a link to another file in its place before
/// the permissions are set, so it must be a directory where only its owner and group can.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let mode = fs::metadata(parent)?.permissions().mode();
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        let why = "every user can write to its directory: chmod o-w, or use another one";
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)
}

/// Removes the socket of a process that was killed. One on which somebody listens stays, and so
/// does anything else.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// The owner and the group, which the directory can choose (its set-group-ID bit).
const SOCKET_MODE: u32 = 0o660;
const BACKLOG: u32 = 128;
const WRITABLE_BY_OTHERS: u32 = 0o002;
/// In such a directory, as /tmp is, only the owner of a file can rename it.
const STICKY: u32 = 0o1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_and_sockets_are_accepted() {
        for text in ["127.0.0.1:1883", "127.1.2.3:0", "[::1]:1883", "unix:/run/assay/mqtt"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn addresses_of_the_network_are_refused() {
        for text in ["0.0.0.0:1883", "[::]:1883", "192.0.2.1:1883", "[::ffff:192.0.2.1]:1883"] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(matches!(error, ListenAddressError::NotLoopback(_)), "{text}");
        }
        for text in ["", "1883", "localhost:1883", "127.0.0.1", "unix:", "127.0.0.1:99999"] {
            assert_eq!(text.parse::<ListenAddress>(), Err(ListenAddressError::Malformed), "{text}");
        }
    }

    #[test]
    fn socket_is_for_owner_and_group_and_takes_the_place_of_a_dead_one_only() {
        let runtime = crate::runtime::runtime().unwrap();
        let _in_runtime = runtime.enter();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mqtt");
        let address = ListenAddress::Socket(path.clone());
        let first = Listener::bind(&address).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let taken = Listener::bind(&address).err().unwrap();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
        // What a killed process leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        Listener::bind(&address).unwrap();
        let mode = |mode| fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        mode(0o777);
        let refused = Listener::bind(&address).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        mode(0o1777);
        Listener::bind(&address).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(Listener::bind(&address).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
