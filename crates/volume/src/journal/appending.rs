//! Appending records: those of writers, and those that are moved.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use format::journal::{HEADER_BYTES, MAX_FOOTER_ENTRIES, Record, RecordKind, SegmentId};

use super::{Appender, Filling, Journal, Moving, failure};
use crate::device::DeviceError;
use crate::extent_map::Place;
use crate::segment::{FIRST_RECORD, RECORD_HEADER};

/// How many records go to the kernel in one call at most.
const MOST_AT_ONCE: usize = 256;

impl Journal {
    /// Appends records with their data, enters each where it lies, and says whether they needed a new segment. The caller
    /// holds the volume's writer: one at a time. After an error some of them may have been entered.
    pub(crate) fn append(
        &self,
        records: &[(Record, &[u8])],
        mut enter: impl FnMut(&Record, Place),
    ) -> Result<bool, DeviceError> {
        self.check()?;
        let mut appender = self.appender.lock();
        let before = appender.next_segment;
        let mut rest = records;
        while !rest.is_empty() {
            let filling =
                self.room_for(&mut appender, length(&rest[0])).map_err(|source| failure("append to", source))?;
            let (now, later) = rest.split_at(self.fitting(filling, rest));
            self.append_to(filling, now, &mut enter).map_err(|source| failure("append to", source))?;
            rest = later;
        }
        Ok(appender.next_segment != before)
    }

    /// How many records fit into the segment, at least one.
    fn fitting(&self, filling: &Filling, records: &[(Record, &[u8])]) -> usize {
        let mut end = filling.segment.tail();
        let room = MOST_AT_ONCE.min(MAX_FOOTER_ENTRIES - filling.records);
        let fits = |record: &&(Record, &[u8])| {
            end += length(record);
            end <= self.files.segment_bytes
        };
        records.iter().take(room).take_while(fits).count().max(1)
    }

    fn append_to(
        &self,
        filling: &mut Filling,
        records: &[(Record, &[u8])],
        enter: &mut impl FnMut(&Record, Place),
    ) -> io::Result<()> {
        let segment = &filling.segment;
        let start = segment.tail();
        let mut headers = Vec::with_capacity(records.len());
        let mut end = start;
        for record in records {
            headers.push(self.keys.encode(&segment.home, end, &record.0));
            end += length(record);
        }
        let padding = segment.padding(end);
        let parts = headers.iter().zip(records).flat_map(|(header, (_, data))| [&header[..], data]);
        let written = match &headers[..] {
            [header] => segment.file().write_all_at(&[header, records[0].1, padding], start),
            _ => segment.file().write_all_at(&parts.chain([padding]).collect::<Vec<_>>(), start),
        };
        if let Err(source) = written {
            // Whatever was written of it is not a record, and the next one takes its place: giving back the room is
            // a courtesy, so it may fail.
            if let Err(error) = segment.file().set_length(start) {
                tracing::warn!(path = %segment.path().display(), %error, "could not cut a failed append");
            }
            return Err(source);
        }
        let mut position = start;
        for record in records {
            enter(&record.0, place_of(&record.0, segment.number(), position));
            position += length(record);
        }
        filling.records += records.len();
        segment.appended(records[0].0.sequence, records[records.len() - 1].0.sequence, end);
        self.bytes.fetch_add(end - start, Ordering::AcqRel);
        self.appended.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The segment that a record goes to.
    fn room_for<'a>(&self, appender: &'a mut Appender, length: u64) -> io::Result<&'a mut Filling> {
        if let Some(full) = appender.filling.take_if(|filling| self.is_full(filling, length)) {
            appender.unsynced.push(full.segment);
        }
        if appender.filling.is_none() {
            let number = appender.next_segment;
            appender.filling = Some(self.new_segment(number)?);
            appender.next_segment += 1;
        }
        appender.filling.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_full(&self, filling: &Filling, length: u64) -> bool {
        let tail = filling.segment.tail();
        let long = tail > FIRST_RECORD && tail + length > self.files.segment_bytes;
        long || filling.records >= MAX_FOOTER_ENTRIES
    }

    fn new_segment(&self, number: u32) -> io::Result<Filling> {
        if number > Place::MAX_SEGMENT {
            return Err(io::Error::other("the journal has had too many segments"));
        }
        let mut generation = [0; 16];
        getrandom::fill(&mut generation).map_err(io::Error::other)?;
        let segment = self.files.make(SegmentId { journal: self.id, number, generation }, &self.keys)?;
        self.new_names.store(true, Ordering::Release);
        let segment = Arc::new(segment);
        self.bytes.fetch_add(FIRST_RECORD, Ordering::AcqRel);
        self.segments.write().insert(number, segment.clone());
        Ok(Filling { segment, records: 0 })
    }

    /// Appends records that lie in other segments, with their own sequence numbers, for who tidies; enters nothing.
    pub(crate) fn append_moved(&self, moving: &mut Moving, record: &Record, data: &[u8]) -> io::Result<Place> {
        let pair = (*record, data);
        if let Some(full) = moving.filling.take_if(|filling| self.is_full(filling, length(&pair))) {
            moving.unsynced.push(full.segment);
        }
        if moving.filling.is_none() {
            let number = {
                let mut appender = self.appender.lock();
                appender.next_segment += 1;
                appender.next_segment - 1
            };
            let filling = self.new_segment(number)?;
            // What is moved may have been promised where it was.
            filling.segment.promised.store(true, Ordering::Release);
            moving.filling = Some(filling);
        }
        let Some(filling) = &mut moving.filling else { return Err(io::ErrorKind::NotFound.into()) };
        let segment = filling.segment.clone();
        let start = segment.tail();
        let header = self.keys.encode(&segment.home, start, record);
        let padding = segment.padding(start + length(&pair));
        segment.file().write_all_at(&[&header, data, padding], start)?;
        filling.records += 1;
        segment.appended(record.sequence, record.sequence, start + length(&pair));
        self.bytes.fetch_add(length(&pair), Ordering::AcqRel);
        Ok(place_of(record, segment.number(), start))
    }
}

fn length((record, _): &(Record, &[u8])) -> u64 {
    RECORD_HEADER + record.data_bytes()
}

/// Where the content of a record lies that begins at a position.
pub(crate) fn place_of(record: &Record, segment: u32, position: u64) -> Place {
    match record.kind {
        RecordKind::Write => Place::data(segment, position + HEADER_BYTES as u64),
        RecordKind::Zero | RecordKind::Discard => Place::zero(segment, position),
    }
}
