//! Server-sent events (WHATWG HTML, section 9.2), as far as an Indexer's stream of heads needs them; bounded.

use bucket::Head;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};

use super::error::ClientError;
use super::transport::Transport;
use crate::api::HeadInfo;

/// The longest line, and the longest event, in bytes.
const MAX_EVENT_BYTES: usize = 16 << 10;

/// A log's head, told by an Indexer. A hint to fetch: only the entries prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadEvent {
    /// The head.
    pub head: Head,
}

/// Turns the bytes of a response into events; ends after the first error.
pub(super) fn heads(
    transport: Transport,
    response: reqwest::Response,
) -> BoxStream<'static, Result<HeadEvent, ClientError>> {
    let body = Box::pin(response.bytes_stream());
    let following = Following { transport, body, parser: Parser::default(), ended: false };
    stream::unfold(following, |mut following| async {
        if following.ended {
            return None;
        }
        let next = following.next().await;
        following.ended = next.is_err();
        Some((next, following))
    })
    .boxed()
}

struct Following<S> {
    transport: Transport,
    body: S,
    parser: Parser,
    ended: bool,
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Following<S> {
    async fn next(&mut self) -> Result<HeadEvent, ClientError> {
        loop {
            if let Some(data) = self.parser.next_event().map_err(|what| self.transport.garbage(what))? {
                let head: Result<HeadInfo, _> = serde_json::from_slice(&data);
                let head = head.map_err(|error| self.transport.garbage(&error.to_string()))?;
                return Ok(HeadEvent { head: head.into() });
            }
            let part = tokio::time::timeout(self.transport.idle_timeout(), self.body.next()).await;
            match part.map_err(|_| self.transport.timed_out())? {
                None => return Err(self.transport.closed()),
                Some(part) => self.parser.push(&part.map_err(|error| self.transport.broken(error))?),
            }
        }
    }
}

/// Splits bytes into lines and lines into events. Only events named `head` count.
#[derive(Debug, Default)]
struct Parser {
    pending: Vec<u8>,
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The data of the next whole event, if it has come.
    fn next_event(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        let mut consumed = 0;
        let mut found = None;
        while let Some(length) = self.pending[consumed..].iter().position(|byte| *byte == b'\n') {
            let line = &self.pending[consumed..consumed + length];
            let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
            consumed += length + 1;
            if let Some(data) = self.line(&line)? {
                found = Some(data);
                break;
            }
        }
        self.pending.drain(..consumed);
        if found.is_none() && self.pending.len() > MAX_EVENT_BYTES {
            return Err("an event without an end");
        }
        Ok(found)
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
        if line.is_empty() {
            let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
            let has_data = std::mem::take(&mut self.has_data);
            return Ok((has_data && event == b"head").then_some(data));
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (field, value) = (&line[..colon], line.get(colon + 1..).unwrap_or_default());
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = value.to_vec(),
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            // Comments keep the connection alive; ids and retry times are not needed.
            _ => {}
        }
        if self.data.len() + self.event.len() > MAX_EVENT_BYTES {
            return Err("an event without an end");
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, &'static str> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for part in parts {
            parser.push(part);
            while let Some(event) = parser.next_event()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    #[test]
    fn events_come_out_however_the_bytes_are_cut() {
        let text: &[u8] =
            b":hello\r\n\r\nid: 7\nevent: head\ndata: {\"a\":\ndata:1}\n\nevent: other\ndata: x\n\ndata: y\n\n\
            event:head\ndata: z\n\n";
        let expected = vec![b"{\"a\":\n1}".to_vec(), b"z".to_vec()];
        assert_eq!(parse(&[text]).unwrap(), expected);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(parse(&bytes).unwrap(), expected);
        for cut in 0..text.len() {
            assert_eq!(parse(&[&text[..cut], &text[cut..]]).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn endless_lines_and_events_are_refused() {
        assert!(parse(&[&vec![b'x'; MAX_EVENT_BYTES + 1]]).is_err());
        let endless = b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(1000);
        assert!(parse(&[&endless]).is_err());
        assert_eq!(parse(&[&b":\n".repeat(100_000)]).unwrap(), Vec::<Vec<u8>>::new());
    }
}
