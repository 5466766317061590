//! An instance's definition, as it travels with a snapshot of its disks. The format is in docs/format.md.
//!
//! A definition comes from another cluster, perhaps of somebody else: it is bounded, and every word of it is checked before
//! it can become part of a command line. What names something of a host (files, addresses, further arguments of QEMU) is
//! neither written nor taken.

use std::collections::BTreeMap;

use node::api::Machine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::luxi::{Luxi, LuxiError};

/// The media type of definitions.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.brant.ganeti+json";

/// The version that is written.
const VERSION: u64 = 1;

/// The longest definition, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// The most NICs, disks, tags or parameters of one kind.
const MAX_ENTRIES: usize = 64;

/// The longest text in a definition, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// The hypervisor's parameters that describe the guest's machine, and nothing of the host.
const HYPERVISOR: [&str; 18] = [
    "acpi",
    "boot_order",
    "cpu_cores",
    "cpu_sockets",
    "cpu_threads",
    "cpu_type",
    "disk_type",
    "kernel_args",
    "keymap",
    "machine_version",
    "nic_type",
    "root_path",
    "serial_console",
    "serial_speed",
    "soundhw",
    "usb_mouse",
    "use_localtime",
    "vga",
];

/// Those of them that a guest may not start without: they are written although the cluster's default is meant.
const ALWAYS: [&str; 4] = ["acpi", "boot_order", "disk_type", "nic_type"];

/// Files of the host that an instance begins from; that there is none is taken, as the guest begins from its disk then.
const BOOT_FILES: [&str; 2] = ["kernel_path", "initrd_path"];

/// The backend's parameters.
const BACKEND: [&str; 6] = ["always_failover", "auto_balance", "maxmem", "minmem", "spindle_use", "vcpus"];

/// A definition cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// Ganeti could not be asked.
    #[error(transparent)]
    Luxi(#[from] LuxiError),
    /// Ganeti does not have it.
    #[error("there is no instance {0} in this cluster")]
    NoInstance(String),
    /// Another platform's.
    #[error("the snapshot has the description of a machine of another kind ({0})")]
    MediaType(String),
    /// Too large.
    #[error("an instance's definition of more than {MAX_BYTES} bytes")]
    TooLong,
    /// Not JSON, or not of this form.
    #[error("what should be an instance's definition is none")]
    Form(#[source] serde_json::Error),
    /// Made by a later version of brant.
    #[error("the instance's definition has version {0}, which is newer than this brant understands")]
    Newer(u64),
    /// A value that cannot be.
    #[error("an instance's definition whose {what} is {text:?}, which cannot be")]
    Invalid {
        /// Of what.
        what: String,
        /// The value.
        text: String,
    },
}

/// An instance's definition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    version: u64,
    /// The instance's name where it comes from.
    pub name: String,
    /// Its operating system, with its variant.
    pub os: String,
    /// Its hypervisor.
    pub hypervisor: String,
    /// The hypervisor's parameters that describe the guest's machine.
    #[serde(default)]
    pub hvparams: BTreeMap<String, Value>,
    /// The backend's parameters.
    #[serde(default)]
    pub beparams: BTreeMap<String, Value>,
    /// The operating system's parameters that are not private.
    #[serde(default)]
    pub osparams: BTreeMap<String, String>,
    /// Its NICs.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its address on the link.
    pub mac: Option<String>,
    /// Its IP address.
    pub ip: Option<String>,
    /// How it is connected.
    pub mode: Option<String>,
    /// To what.
    pub link: Option<String>,
    /// In which VLANs.
    pub vlan: Option<String>,
    /// Ganeti's network, which says mode and link.
    pub network: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name.
    pub name: Option<String>,
    /// Its size.
    pub size_mib: u64,
}

/// A definition as Ganeti has it now.
#[derive(Clone, Debug)]
pub struct Found {
    /// The definition.
    pub definition: Definition,
    /// Where the instance's disks are.
    pub node: String,
    /// The kind of its disks, in Ganeti's words.
    pub template: String,
    /// Parameters that were left out, as they are of the host.
    pub left_out: Vec<String>,
}

/// What is asked for, in the order in which it is read.
const FIELDS: [&str; 19] = [
    "name",
    "pnode",
    "os",
    "hypervisor",
    "custom_hvparams",
    "hvparams",
    "beparams",
    "custom_osparams",
    "tags",
    "nic.macs",
    "nic.ips",
    "nic.modes",
    "nic.links",
    "nic.vlans",
    "nic.networks.names",
    "nic.names",
    "disk.names",
    "disk.sizes",
    "disk_template",
];

impl Definition {
    /// Asks Ganeti for an instance's definition.
    ///
    /// # Errors
    /// When this is not the master, or there is no such instance.
    pub fn ask(luxi: &Luxi, instance: &str) -> Result<Found, DefinitionError> {
        let rows = match luxi.query("instance", &FIELDS, &json!(["|", ["=", "name", instance]])) {
            Err(LuxiError::Unknown(_)) => return Err(DefinitionError::NoInstance(instance.to_owned())),
            asked => asked?,
        };
        let row = rows.into_iter().next().ok_or_else(|| DefinitionError::NoInstance(instance.to_owned()))?;
        let all: BTreeMap<&str, Value> = FIELDS.into_iter().zip(row).collect();
        let text = |field: &str| all.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (hvparams, left_out) = hypervisor_parameters(&all["custom_hvparams"], &all["hvparams"]);
        let of_map = |field: &str| all.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
        let list = |field: &str| all.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        let at = |field: &str, number: usize| list(field).get(number).and_then(word);
        let nics = (0..list("nic.macs").len()).map(|number| Nic {
            mac: at("nic.macs", number),
            ip: at("nic.ips", number),
            mode: at("nic.modes", number),
            link: at("nic.links", number),
            vlan: at("nic.vlans", number),
            network: at("nic.networks.names", number),
            name: at("nic.names", number),
        });
        let size = |size: &Value| size.as_u64().unwrap_or_default();
        let disks = list("disk.sizes")
            .iter()
            .enumerate()
            .map(|(number, mib)| Disk { name: at("disk.names", number), size_mib: size(mib) })
            .collect();
        let definition = Self {
            version: VERSION,
            name: text("name"),
            os: text("os"),
            hypervisor: text("hypervisor"),
            hvparams,
            beparams: of_map("beparams").into_iter().filter(|(key, _)| BACKEND.contains(&key.as_str())).collect(),
            osparams: of_map("custom_osparams")
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), word(value)?)))
                .collect(),
            nics: nics.collect(),
            disks,
            tags: list("tags").iter().filter_map(word).collect(),
        };
        definition.check()?;
        Ok(Found { definition, node: text("pnode"), template: text("disk_template"), left_out })
    }

    /// As a snapshot keeps it.
    #[must_use]
    pub fn to_machine(&self) -> Machine {
        Machine { media_type: MEDIA_TYPE.to_owned(), description: json!(self).to_string() }
    }

    /// Reads what a snapshot keeps; anything may be given.
    ///
    /// # Errors
    /// Another media type, another form, a later version, and values that cannot be.
    pub fn of_machine(machine: &Machine) -> Result<Self, DefinitionError> {
        if machine.media_type != MEDIA_TYPE {
            return Err(DefinitionError::MediaType(machine.media_type.clone()));
        }
        Self::decode(&machine.description)
    }

    /// Reads a definition; anything may be given.
    ///
    /// # Errors
    /// As [`Definition::of_machine`].
    pub fn decode(text: &str) -> Result<Self, DefinitionError> {
        if text.len() > MAX_BYTES {
            return Err(DefinitionError::TooLong);
        }
        // The version comes first, as a later one may have another form.
        let value: Value = serde_json::from_str(text).map_err(DefinitionError::Form)?;
        if let Some(version) = value["version"].as_u64().filter(|version| *version > VERSION) {
            return Err(DefinitionError::Newer(version));
        }
        let definition: Self = serde_json::from_value(value).map_err(DefinitionError::Form)?;
        definition.check()?;
        Ok(definition)
    }

    fn check(&self) -> Result<(), DefinitionError> {
        if self.version != VERSION {
            return Err(invalid("version", &self.version.to_string()));
        }
        let counts = [
            self.hvparams.len(),
            self.beparams.len(),
            self.osparams.len(),
            self.nics.len(),
            self.disks.len(),
            self.tags.len(),
        ];
        if let Some(count) = counts.into_iter().find(|count| *count > MAX_ENTRIES) {
            return Err(invalid("number of entries", &count.to_string()));
        }
        plain("name", &self.name, "-._")?;
        plain("os", &self.os, "-._+")?;
        plain("hypervisor", &self.hypervisor, "-")?;
        for (key, value) in &self.hvparams {
            let text = scalar("hypervisor parameter", key, value)?;
            let known = HYPERVISOR.contains(&key.as_str()) || (BOOT_FILES.contains(&key.as_str()) && text.is_empty());
            if !known {
                return Err(invalid("hypervisor parameter", &format!("{key}={text}")));
            }
        }
        for (key, value) in &self.beparams {
            let known = BACKEND.contains(&key.as_str()) && (value.is_u64() || value.is_boolean());
            if !known {
                return Err(invalid("backend parameter", &format!("{key}={value}")));
            }
        }
        for (key, value) in &self.osparams {
            plain("parameter of the operating system", key, "_-")?;
            printable("parameter of the operating system", value)?;
        }
        self.nics.iter().try_for_each(Nic::check)?;
        for disk in &self.disks {
            disk.name.iter().try_for_each(|name| plain("disk's name", name, "-._"))?;
        }
        // They may begin with anything of this, and stand behind `--tags=`.
        self.tags.iter().try_for_each(|tag| consists("tag", tag, "-._+*/:@"))
    }
}

impl Nic {
    fn check(&self) -> Result<(), DefinitionError> {
        let given = |what: &str, value: &Option<String>, further: &str| match value {
            Some(text) => plain(what, text, further),
            None => Ok(()),
        };
        given("NIC's MAC", &self.mac, ":")?;
        given("NIC's IP", &self.ip, ".:")?;
        given("NIC's mode", &self.mode, "")?;
        given("NIC's link", &self.link, "-._")?;
        given("NIC's network", &self.network, "-._")?;
        given("NIC's name", &self.name, "-._")?;
        // As Ganeti writes VLANs: `.5`, `.5:6`, `:5:6`.
        match &self.vlan {
            Some(text)
                if text.len() > MAX_TEXT_BYTES || !text.bytes().all(|b| b.is_ascii_digit() || b".:".contains(&b)) =>
            {
                Err(invalid("NIC's VLAN", text))
            }
            _ => Ok(()),
        }
    }
}

/// Those parameters that describe the guest's machine, and the names of the instance's own that do not.
fn hypervisor_parameters(own: &Value, filled: &Value) -> (BTreeMap<String, Value>, Vec<String>) {
    let (mut taken, mut left_out) = (BTreeMap::new(), Vec::new());
    for (key, value) in own.as_object().into_iter().flatten() {
        let file = BOOT_FILES.contains(&key.as_str());
        match HYPERVISOR.contains(&key.as_str()) || (file && value == "") {
            true => drop(taken.insert(key.clone(), value.clone())),
            false => left_out.push(key.clone()),
        }
    }
    for key in ALWAYS.into_iter().chain(BOOT_FILES) {
        if let Some(value) = filled.get(key).filter(|value| ALWAYS.contains(&key) || **value == "") {
            taken.insert(key.to_owned(), value.clone());
        }
    }
    // What Ganeti does not know of an instance is none of its parameters.
    taken.retain(|_, value| !value.is_null());
    (taken, left_out)
}

fn word(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn invalid(what: &str, text: &str) -> DefinitionError {
    DefinitionError::Invalid { what: what.to_owned(), text: text.chars().take(100).collect() }
}

/// A word that begins with a letter or digit, and has further ones, and some characters.
fn plain(what: &str, text: &str, further: &str) -> Result<(), DefinitionError> {
    let begins = text.chars().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if begins { consists(what, text, further) } else { Err(invalid(what, text)) }
}

/// A word of letters, digits and some characters.
fn consists(what: &str, text: &str, further: &str) -> Result<(), DefinitionError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || further.contains(c);
    if !text.is_empty() && text.len() <= 255 && text.chars().all(fits) { Ok(()) } else { Err(invalid(what, text)) }
}

/// Text without control characters.
fn printable(what: &str, text: &str) -> Result<(), DefinitionError> {
    if text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control) { Ok(()) } else { Err(invalid(what, text)) }
}

/// A parameter's value, as Ganeti's command line takes it.
pub(crate) fn scalar(what: &str, key: &str, value: &Value) -> Result<String, DefinitionError> {
    let text = match value {
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return Err(invalid(what, key)),
    };
    printable(what, &text).map(|()| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Value {
        json!({
            "version": 1, "name": "web1.example.org", "os": "debootstrap+default", "hypervisor": "kvm",
            "hvparams": {"acpi": true, "boot_order": "disk", "kernel_path": "", "kernel_args": "ro console=ttyS0,115200"},
            "beparams": {"minmem": 128, "maxmem": 256, "vcpus": 1, "auto_balance": true}, "osparams": {"filesystem": "ext4"},
            "nics": [{"mac": "aa:00:00:01:02:03", "mode": "bridged", "link": "br0", "vlan": ".5", "ip": "10.0.0.1"}],
            "disks": [{"name": "root", "size_mib": 64}], "tags": ["web", "owner:alice"],
        })
    }

    #[test]
    fn it_is_what_it_was() {
        let definition = Definition::decode(&web().to_string()).unwrap();
        assert_eq!(Definition::of_machine(&definition.to_machine()).unwrap(), definition);
    }

    #[test]
    fn what_version_1_wrote_is_read_and_written_the_same() {
        let golden = include_str!("../golden/definition-v1.json").trim_end();
        let definition = Definition::decode(golden).unwrap();
        assert_eq!(definition.nics[1].network.as_deref(), Some("backup"));
        assert_eq!(definition.disks[0], Disk { name: Some("root".to_owned()), size_mib: 20_480 });
        let written: Value = serde_json::from_str(&definition.to_machine().description).unwrap();
        assert_eq!(written, serde_json::from_str::<Value>(golden).unwrap());
    }

    #[test]
    fn what_would_be_more_than_a_value_is_refused() {
        for (pointer, value) in [
            ("/version", json!(0)),
            ("/name", json!("-n node1")),
            ("/os", json!("--src-dir=/etc")),
            ("/os", json!("")),
            ("/hypervisor", json!("kvm:kvm_extra=x")),
            ("/hvparams", json!({"kvm_extra": "-chardev file,path=/etc/passwd"})),
            ("/hvparams", json!({"kernel_path": "/etc/shadow"})),
            ("/hvparams", json!({"kernel_args": "a\nb"})),
            ("/hvparams", json!({"acpi": null})),
            ("/hvparams", json!({"kernel_args": "x".repeat(2000)})),
            ("/beparams", json!({"vcpus": "1,always_failover=1"})),
            ("/beparams", json!({"memory": 1})),
            ("/osparams", json!({"a=b,c": "1"})),
            ("/nics/0/mac", json!("generate,link=br1")),
            ("/nics/0/link", json!("br0,ip=1.2.3.4")),
            ("/nics/0/vlan", json!(".5,x=y")),
            ("/nics/0/mode", json!("-")),
            ("/disks/0/name", json!("a,adopt=b")),
            ("/tags", json!(["a,b"])),
            ("/tags", json!([""])),
            ("/tags", json!(vec!["a"; 65])),
            ("/nics", json!("many")),
        ] {
            let mut changed = web();
            *changed.pointer_mut(pointer).unwrap() = value.clone();
            assert!(Definition::decode(&changed.to_string()).is_err(), "{pointer} {value}");
        }
    }

    #[test]
    fn a_later_version_is_said_and_bytes_are_none() {
        let later = Definition::decode("{\"version\":2,\"name\":[]}").unwrap_err();
        assert!(matches!(later, DefinitionError::Newer(2)));
        for bad in ["", "[]", "7", "{", "{\"version\":1}"] {
            assert!(matches!(Definition::decode(bad).unwrap_err(), DefinitionError::Form(_)), "{bad}");
        }
        assert!(matches!(Definition::decode(&" ".repeat(MAX_BYTES + 1)).unwrap_err(), DefinitionError::TooLong));
        let machine = Machine { media_type: "application/ovf".to_owned(), description: String::new() };
        assert!(matches!(Definition::of_machine(&machine).unwrap_err(), DefinitionError::MediaType(_)));
    }

    #[test]
    fn what_is_of_the_host_stays_there() {
        let own = json!({"kvm_extra": "-x", "vga": "std", "kernel_path": "/boot/vmlinuz"});
        let filled = json!({"acpi": true, "disk_type": "ide", "kernel_path": "/boot/vmlinuz", "initrd_path": "", "kvm_flag": "enabled"});
        let (taken, left_out) = hypervisor_parameters(&own, &filled);
        assert_eq!(json!(taken), json!({"acpi": true, "disk_type": "ide", "initrd_path": "", "vga": "std"}));
        assert_eq!(left_out, ["kernel_path", "kvm_extra"]);
    }
}
