//! The transport over QUIC by iroh: peers are known by public key, and reached at the addresses that the node looks up.
//!
//! Nothing outside is contacted: no relay, no DNS, no default services. Addresses are asked of the [`Library`] at every
//! connect and given to it when ours change.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::iroh::address_lookup::{AddressLookup, EndpointData};
use ::iroh::endpoint::{
    ConnectOptions, Connection as QuicConnection, IdleTimeout, QuicTransportConfig, ReadExactError, RecvStream,
    SendStream as QuicSendStream, VarInt, presets,
};
use ::iroh::{Endpoint, EndpointAddr, RelayMode, SecretKey, TransportAddr};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use types::EndpointId;

use super::{BoxError, Connection, Incoming, Protocol, ReceiveStream, SendStream, Stream, Transport, TransportError};
use crate::library::Library;

/// How much one stream may be ahead of its reader, in bytes: a bulk request's worth and more.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// How much one connection may be ahead of its readers, in bytes: 1 Gbit/s over 100 ms.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// How much a connection keeps of what was sent and not yet acknowledged, in bytes.
const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// How many streams a peer may have open on a connection.
const STREAMS: u32 = 256;
/// A connection on which nothing arrives for so long is lost.
const IDLE: Duration = Duration::from_secs(15);
/// How often something is sent on an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// The same among the members of a cluster, whose guests wait for a home that is lost: it is to be noticed soon.
const CLUSTER_IDLE: Duration = Duration::from_secs(4);
const CLUSTER_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// An iroh endpoint.
#[derive(Debug)]
pub struct IrohTransport {
    endpoint: Endpoint,
    library: Arc<dyn Library>,
}

impl IrohTransport {
    /// Binds an endpoint with this identity to the given addresses, or to all IPv4 ones on a free port.
    ///
    /// # Errors
    /// [`TransportError::Bind`] when an address cannot be bound.
    pub async fn bind(
        secret_key: &[u8; 32],
        bind: &[SocketAddr],
        library: Arc<dyn Library>,
    ) -> Result<Self, TransportError> {
        let failed = |error: BoxError| TransportError::Bind(error);
        let config = quic(IDLE, KEEP_ALIVE).map_err(failed)?;
        let mut builder = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(secret_key))
            .alpns(Protocol::ALL.map(|protocol| protocol.alpn().to_vec()).to_vec())
            .relay_mode(RelayMode::Disabled)
            .transport_config(config)
            .address_lookup(Publisher { library: Arc::clone(&library) })
            .clear_ip_transports();
        let anywhere = [SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))];
        for address in if bind.is_empty() { &anywhere } else { bind } {
            builder = builder.bind_addr(*address).map_err(|error| failed(error.into()))?;
        }
        let endpoint = builder.bind().await.map_err(|error| failed(error.into()))?;
        Ok(Self { endpoint, library })
    }
}

/// How connections are kept.
fn quic(idle: Duration, keep_alive: Duration) -> Result<QuicTransportConfig, BoxError> {
    let config = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(IdleTimeout::try_from(idle)?))
        .keep_alive_interval(keep_alive);
    Ok(config.build())
}

impl Transport for IrohTransport {
    fn endpoint(&self) -> EndpointId {
        EndpointId(*self.endpoint.id().as_bytes())
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoint.addr().ip_addrs().copied().collect()
    }

    fn connect(
        &self,
        peer: EndpointId,
        protocol: Protocol,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, TransportError>> {
        let endpoint = self.endpoint.clone();
        let addresses = self.library.resolve(peer);
        Box::pin(async move {
            let id = ::iroh::EndpointId::from_bytes(&peer.0).map_err(|_| TransportError::NotAnEndpoint(peer))?;
            let addresses = addresses.await.filter(|found| !found.is_empty()).ok_or(TransportError::NoAddress(peer))?;
            let address = EndpointAddr::from_parts(id, addresses.into_iter().map(TransportAddr::Ip));
            let failed = |error: BoxError| TransportError::Connect { peer, source: error };
            let options = match protocol {
                Protocol::Chunks => ConnectOptions::new(),
                Protocol::Cluster => {
                    ConnectOptions::new().with_transport_config(quic(CLUSTER_IDLE, CLUSTER_KEEP_ALIVE).map_err(failed)?)
                }
            };
            let connecting = endpoint.connect_with_opts(address, protocol.alpn(), options).await;
            let connecting = connecting.map_err(|error| failed(error.into()))?;
            let connection = connecting.await.map_err(|error| failed(error.into()))?;
            Ok(Arc::new(IrohConnection { peer, protocol, connection }) as Arc<dyn Connection>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Incoming>> {
        Box::pin(async move {
            let incoming = self.endpoint.accept().await?;
            Some(Box::pin(async move {
                let connection = incoming.await.map_err(lost)?;
                let peer = EndpointId(*connection.remote_id().as_bytes());
                // The handshake has agreed on one of those that were offered.
                let protocol = Protocol::of_alpn(connection.alpn()).ok_or(TransportError::Framing)?;
                Ok(Arc::new(IrohConnection { peer, protocol, connection }) as Arc<dyn Connection>)
            }) as Incoming)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.endpoint.close())
    }
}

/// Tells the node where this endpoint can be reached.
#[derive(Debug)]
struct Publisher {
    library: Arc<dyn Library>,
}

impl AddressLookup for Publisher {
    fn publish(&self, data: &EndpointData) {
        self.library.publish(data.ip_addrs().copied().collect());
    }
}

#[derive(Debug)]
struct IrohConnection {
    peer: EndpointId,
    protocol: Protocol,
    connection: QuicConnection,
}

fn lost(error: impl Into<BoxError>) -> TransportError {
    TransportError::Lost(error.into())
}

fn stream((send, receive): (QuicSendStream, RecvStream)) -> Stream {
    (Box::new(IrohSend { stream: send, finished: false }), Box::new(IrohReceive(receive)))
}

impl Connection for IrohConnection {
    fn peer(&self) -> EndpointId {
        self.peer
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, TransportError>> {
        Box::pin(async { self.connection.open_bi().await.map(stream).map_err(lost) })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, TransportError>> {
        Box::pin(async { self.connection.accept_bi().await.map(stream).map_err(lost) })
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

struct IrohSend {
    stream: QuicSendStream,
    finished: bool,
}

impl SendStream for IrohSend {
    fn send(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move { self.stream.write_chunk(bytes).await.map_err(lost) })
    }

    fn finish(&mut self) {
        self.finished = true;
        // It fails only on a stream that the peer has stopped, which needs no end.
        let _ = self.stream.finish();
    }

    fn set_priority(&mut self, priority: i32) {
        let _ = self.stream.set_priority(priority);
    }
}

impl Drop for IrohSend {
    fn drop(&mut self) {
        // QUIC would end the stream as if all had been sent.
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

struct IrohReceive(RecvStream);

impl ReceiveStream for IrohReceive {
    fn receive(&mut self, length: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            let mut buffer = BytesMut::zeroed(length);
            match self.0.read_exact(&mut buffer).await {
                Ok(()) => Ok(Some(buffer.freeze())),
                Err(ReadExactError::FinishedEarly(0)) => Ok(None),
                Err(ReadExactError::FinishedEarly(_)) => Err(TransportError::Framing),
                Err(ReadExactError::ReadError(error)) => Err(lost(error)),
            }
        })
    }

    fn receive_all(&mut self, limit: usize) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            let mut all = BytesMut::new();
            while let Some(part) = self.0.read_chunk(limit + 1 - all.len()).await.map_err(lost)? {
                all.extend_from_slice(&part);
                if all.len() > limit {
                    return Err(TransportError::Framing);
                }
            }
            Ok(all.freeze())
        })
    }
}
