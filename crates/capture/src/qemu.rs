//! Image formats through qemu's own tools: `qemu-nbd` serves an image to our NBD client, `qemu-img` makes and checks it.
//!
//! Invariants: the tools are told the format and never guess it; an image that refers to other files is refused before
//! any tool has opened it, unless that was allowed, and a backing file is switched off for the tools as well; an image
//! that is damaged or cut short is refused, because qemu would read what is missing as zeroes. The tools get the image
//! as their standard input and open it again through `/proc/self/fd/0`, so they need the right to open it themselves.
//! A server is a child on a socket in a private directory: it dies with its [`QemuImage`], and ends by itself when the
//! connections of a process that died are closed.
//!
//! Whoever may write the image while it is being opened can change it after the check; give them no daemon with more
//! rights than they have.

pub mod header;
mod process;
mod server;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::detect::Format;
use crate::foreign::{CaptureError, ForeignDisk, ForeignExtent};
use crate::nbd::{NbdDisk, NbdError};

pub use header::Reference;
use process::Tool;
pub(crate) use server::QemuServer;

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct QemuOptions {
    /// Where the image lies, where that is known: files that it refers to are looked for beside it.
    pub path: Option<PathBuf>,
    /// Whether it may refer to other files. Only for images that are trusted.
    pub allow_other_files: bool,
}

/// An image could not be opened, or made, with qemu.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuError {
    /// The tool is not installed.
    #[error("{0} is not installed: it is needed for images other than raw (Debian: apt-get install qemu-utils)")]
    Missing(&'static str),
    /// The tool could not be started or watched.
    #[error("could not run {tool}")]
    Run {
        /// The tool.
        tool: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The tool failed.
    #[error("{tool} failed: {said}")]
    Failed {
        /// The tool.
        tool: &'static str,
        /// What it wrote to its standard error.
        said: String,
    },
    /// The tool was given up.
    #[error("{tool} took longer than {seconds} seconds")]
    TimedOut {
        /// The tool.
        tool: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// What the tool says is not understood.
    #[error("could not understand what qemu-img says of the image")]
    Answer(#[source] serde_json::Error),
    /// The image is damaged, or was cut short.
    #[error("the {format} image is damaged or truncated: {said}")]
    Damaged {
        /// Its format.
        format: Format,
        /// What was found.
        said: String,
    },
    /// The image is encrypted.
    #[error("the {0} image is encrypted, which is not supported")]
    Encrypted(Format),
    /// The image refers to another file.
    #[error("the image refers to another file ({0}); allow that only if you trust whoever made it")]
    OtherFile(Reference),
    /// The server failed while it was used.
    #[error("qemu-nbd failed{}", said_after(said))]
    Server {
        /// What it wrote to its standard error.
        said: String,
        /// What its client saw.
        #[source]
        source: NbdError,
    },
}

fn said_after(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// How long looking at an image's header may take.
const INFO_LIMIT: Duration = Duration::from_secs(30);

/// How long checking all of an image's tables may take.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);

/// An image of any format that qemu knows, as a disk.
#[derive(Debug)]
pub struct QemuImage {
    disk: NbdDisk,
    // After the disk, so that its connections are closed first.
    server: QemuServer,
}

impl QemuImage {
    /// Opens an image for reading.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn open(file: &File, format: Format, options: &QemuOptions) -> Result<Self, CaptureError> {
        let reference = header::check(file, format)?;
        if let Some(reference) = reference
            && !options.allow_other_files
        {
            return Err(QemuError::OtherFile(reference).into());
        }
        let image = Image::new(file, format, options)?;
        image.inspect(options.allow_other_files)?;
        image.check()?;
        let (server, disk) = QemuServer::serve(&image, false)?;
        Ok(Self { disk, server })
    }
}

impl ForeignDisk for QemuImage {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CaptureError> {
        self.disk.read_at(offset, buffer).map_err(|error| self.blame(error))
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<ForeignExtent>, CaptureError> {
        self.disk.extents(offset, length).map_err(|error| self.blame(error))
    }

    fn parallel_reads(&self) -> usize {
        4
    }
}

impl QemuImage {
    fn blame(&self, error: CaptureError) -> CaptureError {
        match error {
            CaptureError::Nbd(source) => self.server.blame(source).into(),
            other => other,
        }
    }
}

/// An image as the tools are told of it.
#[derive(Debug)]
struct Image<'f> {
    file: &'f File,
    format: Format,
    node: Value,
}

impl<'f> Image<'f> {
    fn new(file: &'f File, format: Format, options: &QemuOptions) -> Result<Self, CaptureError> {
        use std::os::unix::fs::FileTypeExt;
        let kind = file.metadata().map_err(CaptureError::io("look at the image"))?.file_type();
        let driver = if kind.is_block_device() { "host_device" } else { "file" };
        // Relative names in an image are looked up beside it, which takes its path.
        let path = options.path.as_ref().filter(|_| options.allow_other_files);
        let filename = match path.map(|path| path.canonicalize()).transpose() {
            Ok(path) => path.map_or_else(|| STDIN.into(), |path| path.to_string_lossy().into_owned()),
            Err(source) => return Err(CaptureError::Io { operation: "find the image by its path", source }),
        };
        let mut node = json!({ "driver": format.qemu_name(), "file": { "driver": driver, "filename": filename } });
        if !options.allow_other_files && matches!(format, Format::Qcow2 | Format::Vmdk) {
            node["backing"] = Value::Null;
        }
        Ok(Self { file, format, node })
    }

    fn name(&self) -> String {
        format!("json:{}", self.node)
    }

    fn tool(&self) -> Result<Tool, QemuError> {
        Tool::new("qemu-img").stdin(self.file)
    }

    /// Has qemu read the header, and refuses what [`header::check`] may have missed.
    fn inspect(&self, allow_other_files: bool) -> Result<(), QemuError> {
        let run = self.tool()?.args(["info", "--output=json"]).arg(&self.name()).run(INFO_LIMIT, &|| false)?;
        if !run.success() {
            return Err(run.failed());
        }
        let info: Info = serde_json::from_slice(&run.stdout).map_err(QemuError::Answer)?;
        let data = info.format_specific.map(|specific| specific.data).unwrap_or_default();
        if info.encrypted {
            return Err(QemuError::Encrypted(self.format));
        }
        if data.corrupt {
            return Err(QemuError::Damaged { format: self.format, said: "it is marked as corrupt".into() });
        }
        let other = match (info.backing_filename, data.data_file) {
            (Some(name), _) => Some(Reference::Backing(name)),
            (None, Some(name)) => Some(Reference::Data(name)),
            (None, None) => None,
        };
        match other {
            Some(reference) if !allow_other_files => Err(QemuError::OtherFile(reference)),
            _ => Ok(()),
        }
    }

    /// Has qemu check the tables, where the format has a check.
    fn check(&self) -> Result<(), QemuError> {
        /// What `qemu-img check` ends with where clusters are only lost, and where a format has no check.
        const HARMLESS: [i32; 3] = [0, 3, 63];
        let run = self.tool()?.args(["check", "--output=json"]).arg(&self.name()).run(CHECK_LIMIT, &|| false)?;
        if run.code().is_some_and(|code| HARMLESS.contains(&code)) {
            return Ok(());
        }
        Err(QemuError::Damaged { format: self.format, said: run.said() })
    }
}

/// What `qemu-img info --output=json` says, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    #[serde(default)]
    corrupt: bool,
    data_file: Option<String>,
}

/// The file that a tool gets as its standard input, by name.
const STDIN: &str = "/proc/self/fd/0";

/// Makes an image that is all hole, in an empty file.
pub(crate) fn create(file: &File, format: Format, size_bytes: u64) -> Result<(), QemuError> {
    let mut tool = Tool::new("qemu-img").stdin(file)?.args(["create", "-q", "-f", format.qemu_name()]);
    if format == Format::Vhd {
        // Else the size is rounded to one that old geometry can express.
        tool = tool.args(["-o", "force_size=on"]);
    }
    tool.args([STDIN, &size_bytes.to_string()]).run(INFO_LIMIT, &|| false)?.check()
}

/// Makes a compressed image of a raw file, in an empty file.
pub(crate) fn compress(raw: &Path, file: &File, format: Format, stop: &dyn Fn() -> bool) -> Result<(), QemuError> {
    const LIMIT: Duration = Duration::from_secs(48 * 3600);
    let mut tool = Tool::new("qemu-img").stdin(file)?.args(["convert", "-f", "raw", "-O", format.qemu_name()]);
    tool = match format {
        Format::Vmdk => tool.args(["-o", "subformat=streamOptimized"]),
        _ => tool.args(["-c"]),
    };
    tool.arg(&raw.to_string_lossy()).arg(STDIN).run(LIMIT, stop)?.check()
}
