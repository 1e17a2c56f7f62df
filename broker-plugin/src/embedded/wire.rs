//! Moves bytes between TLS and two buffers, and reads the first packet.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_rustls::server::TlsStream;

use super::packet::{Codec, Connect, End, Packet, Reason, Terms, UNSUPPORTED_VERSION};

/// The longest CONNECT, in bytes. A Will and a token have 1 KiB each at most.
const CONNECT_PACKET: usize = 8 * 1024;

/// While this many bytes wait to be written, the client is not heard, and gets no more messages.
pub(super) const ENOUGH: usize = 16 * 1024;

/// The most bytes that are read at once.
pub(super) const READ: usize = 4096;

/// How long a client gets to read why its connection ends.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// What happened on the wire.
pub(super) enum Turn {
    Read,
    Wrote,
    Closed,
}

/// A first packet that is refused, and why.
pub(super) struct Refused {
    /// Writes the CONNACK, if the client gets one in its own version.
    pub(super) codec: Option<Codec>,
    pub(super) end: End,
}

/// A TLS connection, the bytes that were read, and the bytes that are to be written.
pub(super) struct Wire {
    stream: TlsStream<TcpStream>,
    pub(super) input: BytesMut,
    pub(super) out: BytesMut,
    is_flushed: bool,
    /// When something was written last, or there was nothing to write.
    pub(super) written: Instant,
}

impl Wire {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            out: BytesMut::new(),
            is_flushed: true,
            written: Instant::now(),
        }
    }

    /// Reads the first packet, which must be a CONNECT.
    pub(super) async fn introduction(&mut self) -> Result<(Codec, Box<Connect>), Refused> {
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
                        let end =
                            End::new(Reason::ProtocolError, "its first packet is not a CONNECT");
                        return Err(Refused { codec: None, end });
                    }
                    Ok(None) => codec = Some(known),
                    Err(end) => return Err(Refused { codec: Some(known), end }),
                }
            }
            let closed = match self.turn(true).await {
                Ok(Turn::Closed) => "it closed the connection before a CONNECT".to_owned(),
                Ok(_) => continue,
                Err(error) => error.to_string(),
            };
            return Err(Refused { codec: None, end: End::new(Reason::Success, closed) });
        }
    }

    /// Tells the client that it is refused, if its version has a way to say it, and ends TLS.
    pub(super) async fn refuse(&mut self, codec: Option<Codec>, end: &End, terms: &Terms) {
        match codec {
            Some(mut codec) => codec.connack(&mut self.out, end.reason, terms),
            None if end.reason == Reason::UnsupportedProtocolVersion => {
                self.out.extend_from_slice(UNSUPPORTED_VERSION);
            }
            None => {}
        }
        self.finish(end.reason).await;
    }

    /// Writes and, if it `may_read`, reads. Returns as soon as something was written or read.
    pub(super) async fn turn(&mut self, may_read: bool) -> io::Result<Turn> {
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

    /// Frees buffers that are empty: most connections are silent most of the time.
    pub(super) fn spare(&mut self) {
        for buffer in [&mut self.input, &mut self.out] {
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Writes what is left and ends TLS, if the client reads it in time.
    ///
    /// It reads some of what the client is still sending. If it did not, the kernel would discard
    /// our last bytes (RFC 1122 §4.2.2.13). It does not do so for a connection that was taken over,
    /// because another client waits for its end.
    pub(super) async fn finish(&mut self, reason: Reason) {
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
