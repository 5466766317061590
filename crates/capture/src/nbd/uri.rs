//! NBD URIs (github.com/NetworkBlockDevice/nbd, doc/uri.md): `nbd://HOST[:PORT]/NAME`, `nbd+unix:///NAME?socket=PATH`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port that IANA gave to NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// TCP.
    Tcp {
        /// A name or an address; IPv6 without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// The socket.
        path: PathBuf,
    },
}

/// An export of an NBD server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where the server listens.
    pub address: NbdAddress,
    /// The export's name; the empty name is the server's default.
    pub export: String,
}

/// A text is not an NBD URI that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not one at all.
    #[error("{0:?} is not an NBD URI: write nbd://HOST:PORT/NAME or nbd+unix:///NAME?socket=PATH")]
    Malformed(String),
    /// One with TLS.
    #[error("NBD over TLS is not supported: {0:?}")]
    Tls(String),
}

impl NbdUri {
    /// Whether a text is meant as an NBD URI, well-formed or not.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        ["nbd:", "nbds:", "nbd+", "nbds+"].iter().any(|scheme| text.starts_with(scheme))
    }
}

impl FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let malformed = || UriError::Malformed(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path).ok_or_else(malformed)?;
        if export.len() > MAX_EXPORT_BYTES || text.contains('#') {
            return Err(malformed());
        }
        let address = match scheme {
            "nbds" | "nbds+unix" | "nbds+tcp" => return Err(UriError::Tls(text.to_owned())),
            "nbd" | "nbd+tcp" => tcp_address(authority),
            "nbd+unix" if authority.is_empty() => query
                .split(['&', ';'])
                .find_map(|pair| pair.strip_prefix("socket="))
                .and_then(decode)
                .filter(|path| !path.is_empty() && !path.contains('\0'))
                .map(|path| NbdAddress::Unix { path: path.into() }),
            _ => None,
        };
        Ok(Self { address: address.ok_or_else(malformed)?, export })
    }
}

/// The longest name of an export that the protocol allows, in bytes.
const MAX_EXPORT_BYTES: usize = 4096;

fn tcp_address(authority: &str) -> Option<NbdAddress> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, port.strip_prefix(':').or(port.is_empty().then_some(""))?)
    } else {
        authority.split_once(':').unwrap_or((authority, ""))
    };
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(good) {
        return None;
    }
    let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().ok().filter(|port| *port > 0)? };
    Some(NbdAddress::Tcp { host: host.to_owned(), port })
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            NbdAddress::Tcp { .. } => {
                write!(f, "nbd://{}/", self.address)?;
                encode(&self.export, f)
            }
            NbdAddress::Unix { path } => {
                f.write_str("nbd+unix:///")?;
                encode(&self.export, f)?;
                f.write_str("?socket=")?;
                encode(&path.to_string_lossy(), f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        NbdUri { address: NbdAddress::Tcp { host: host.into(), port }, export: export.into() }
    }

    #[test]
    fn the_forms_of_the_specification_are_read() {
        for (text, uri) in [
            ("nbd://example.com", tcp("example.com", 10809, "")),
            ("nbd://example.com:1/a/b", tcp("example.com", 1, "a/b")),
            ("nbd+tcp://[::1]:2/x%20y", tcp("::1", 2, "x y")),
        ] {
            assert_eq!(text.parse(), Ok(uri.clone()), "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri));
        }
        let unix = NbdUri { address: NbdAddress::Unix { path: "/run/a+b.sock".into() }, export: "disk".into() };
        assert_eq!("nbd+unix:///disk?socket=/run/a+b.sock".parse(), Ok(unix.clone()));
        assert_eq!(unix.to_string().parse(), Ok(unix));
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "",
            "nbd:",
            "nbd://",
            "nbd://host:0/",
            "nbd://host:99999/",
            "nbd://h ost/",
            "nbd://[x]/",
            "nbd+unix:///x",
            "nbd+unix://host/x?socket=/s",
            "nbd+unix:///x?socket=",
            "nbd://h/%zz",
            "nbd://h/%ff",
            "http://h/",
            "nbd://h/#x",
        ] {
            assert!(matches!(bad.parse::<NbdUri>(), Err(UriError::Malformed(_))), "{bad}");
        }
        assert!(matches!("nbds://h/".parse::<NbdUri>(), Err(UriError::Tls(_))));
    }
}
