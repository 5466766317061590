//! Making an instance from a snapshot: what its definition says, what is said here instead, and the command of Ganeti's
//! that comes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use node::api::{ApiError, ErrorCode, SnapshotDetail};
use node::client::Client;
use serde_json::{Value, json};

use crate::definition::{Definition, scalar};
use crate::luxi::Luxi;
use crate::origin::{Origin, published_as};
use crate::session::{Session, invalid};

/// How long it may take to find the snapshot, at peers too.
const FINDING: Duration = Duration::from_secs(60);

/// Ganeti's unit of size.
const MEBIBYTE: u64 = 1 << 20;

/// What an operator says of an instance, in Ganeti's words; what is left out is as in the snapshot's definition.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// The new instance's name.
    pub name: String,
    /// Its node.
    pub node: Option<String>,
    /// What chooses its node.
    pub iallocator: Option<String>,
    /// Its operating system.
    pub os: Option<String>,
    /// Parameters of its operating system, instead of those of the definition with the same names.
    pub os_parameters: Option<String>,
    /// Private ones, which are never in a definition.
    pub os_private: Option<String>,
    /// Its NICs, instead of all of the definition's.
    pub nics: Vec<String>,
    /// It has no NICs.
    pub no_nics: bool,
    /// The NICs keep their addresses on the link.
    pub keep_mac: bool,
    /// Parameters of the backend, instead of those of the definition with the same names.
    pub backend: Option<String>,
    /// The hypervisor, and parameters of it.
    pub hypervisor: Option<String>,
    /// Parameters of every disk, or behind its number and a colon of one.
    pub disks: Vec<String>,
    /// Its name need not resolve.
    pub no_name_check: bool,
}

/// What Ganeti is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `gnt-instance add` and its arguments.
    pub words: Vec<String>,
    /// What starts the instance, as Ganeti itself starts none that it did not install.
    pub start: Vec<String>,
}

/// Finds a snapshot and says how Ganeti makes an instance of it.
///
/// # Errors
/// A snapshot that cannot be found, a definition that cannot be used or does not fit this cluster, and what is missing where
/// there is none.
pub async fn plan(client: &Client, luxi: &Luxi, snapshot: &str, wishes: &Wishes) -> Result<Plan, ApiError> {
    let session = Session::new(client, FINDING);
    let origin: Origin = snapshot.parse().map_err(|error| invalid(&error))?;
    if origin.disk().is_some() {
        let message = format!("{snapshot} is one disk of a snapshot, and an instance begins as all of them");
        return Err(ApiError::new(ErrorCode::Invalid, message).hint("leave #DISK out"));
    }
    let path = origin.snapshot(&session).await?;
    let detail = session.ask(client.snapshot(&path)).await?;
    let found = &detail.snapshot;
    // All disks begin as the same version, whatever is published meanwhile, and on whichever node Ganeti makes them.
    let place = match published_as(&session, &found.bucket).await? {
        Some(reference) => format!("{reference}/{}@{}", found.object, found.version),
        None => format!("{}/{}@{}", found.bucket, found.object, found.version),
    };
    let definition = match &detail.machine {
        Some(machine) => Some(Definition::of_machine(machine).map_err(|error| invalid(&error))?),
        None => None,
    };
    if let Some(definition) = &definition {
        fits(luxi, definition, wishes)?;
    }
    let start = ["gnt-instance", "start", "--", &wishes.name].map(str::to_owned).to_vec();
    words(&place, &detail, definition.as_ref(), wishes).map(|words| Plan { words, start })
}

/// Whether this cluster has what the definition names, where Ganeti's own words would not say what to do.
fn fits(luxi: &Luxi, definition: &Definition, wishes: &Wishes) -> Result<(), ApiError> {
    let asking = |error: crate::LuxiError| {
        ApiError::from_error(ErrorCode::Unreachable, &error).hint("run it on Ganeti's master, where gnt-instance runs")
    };
    let cluster = luxi.call("QueryClusterInfo", &json!([])).map_err(asking)?;
    let has = |what: &str, name: &str| cluster[what].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    if wishes.hypervisor.is_none() && !has("enabled_hypervisors", &definition.hypervisor) {
        let message =
            format!("{} ran under {}, which this cluster has not enabled", definition.name, definition.hypervisor);
        return Err(ApiError::new(ErrorCode::Invalid, message).hint("choose another one: -H kvm[:PARAMETER=VALUE,…]"));
    }
    if wishes.nics.is_empty() && !wishes.no_nics {
        let networks = luxi.query("network", &["name"], &Value::Null).map_err(asking)?;
        let names: BTreeSet<&str> = networks.iter().filter_map(|row| row.first()?.as_str()).collect();
        let wanted = definition.nics.iter().filter_map(|nic| nic.network.as_deref());
        if let Some(absent) = wanted.into_iter().find(|network| !names.contains(network)) {
            let message =
                format!("{} has a NIC in the network {absent}, which this cluster does not have", definition.name);
            return Err(ApiError::new(ErrorCode::Invalid, message)
                .hint("describe the NICs anew (--net 0:link=br0, for example), or leave them out: --no-nics"));
        }
    }
    Ok(())
}

/// What to say, where Ganeti refuses to make an instance.
#[must_use]
pub fn advice(refusal: &str) -> Option<&'static str> {
    let says = |texts: &[&str]| texts.iter().any(|text| refusal.to_lowercase().contains(text));
    if says(&["policy"]) {
        Some("ask for less, or for what the policy allows: -B vcpus=1,minmem=512M,maxmem=512M")
    } else if says(&["bridge", "ip address", " mac ", "network"]) {
        Some("describe the NICs anew (--net 0:link=br0, for example), or leave them out: --no-nics")
    } else if says(&["directory for os", "os '", "os name", "os type", "supported os list", "os variant"]) {
        Some("name an operating system that this cluster has (gnt-os list): --os NAME")
    } else if says(&["already in the cluster", "already exists"]) {
        Some("choose another --name")
    } else if says(&["os parameters", "supported by the os"]) {
        Some(
            "give the parameters that it lacks (--os-parameters, and --os-parameters-private, which never travel), or another --os",
        )
    } else if says(&["memory"]) {
        Some("ask for less memory (-B minmem=512M,maxmem=512M), or choose another node")
    } else if says(&["hypervisor", "parameter"]) {
        Some("give the hypervisor other parameters: -H kvm:PARAMETER=VALUE,…")
    } else if says(&["resolve", "hostname"]) {
        Some("the name must resolve, or: --no-name-check")
    } else {
        None
    }
}

fn words(
    place: &str,
    detail: &SnapshotDetail,
    definition: Option<&Definition>,
    wishes: &Wishes,
) -> Result<Vec<String>, ApiError> {
    let os = wishes.os.clone().or_else(|| definition.map(|definition| definition.os.clone())).ok_or_else(|| {
        ApiError::new(ErrorCode::Invalid, format!("{place} has no definition of an instance: its operating system must be said"))
            .hint("--os NAME, as in gnt-os list; memory and processors are the cluster's default, or: -B vcpus=2,minmem=1G,maxmem=1G")
    })?;
    let count = detail.disks.len();
    if let Some(absent) = wishes.disks.iter().find(|said| disk_of(said).0.is_some_and(|number| number >= count)) {
        let message = format!("{place} has {count} disks, from 0 on, and none of the number in --disk {absent}");
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    let mut words = ["gnt-instance", "add", "--disk-template=ext", "--no-install"].map(str::to_owned).to_vec();
    words.push(format!("--os-type={os}"));
    for (number, disk) in detail.disks.iter().enumerate() {
        let known = definition.and_then(|definition| definition.disks.get(number));
        let name = known.and_then(|disk| disk.name.as_ref()).map(|name| format!(",name={name}")).unwrap_or_default();
        let size = disk.size_bytes.div_ceil(MEBIBYTE);
        let of_it = wishes.disks.iter().filter_map(|said| match disk_of(said) {
            (Some(which), said) => (which == number).then_some(said),
            (None, said) => Some(said),
        });
        let further: String = of_it.map(|said| format!(",{said}")).collect();
        words.push(format!("--disk={number}:size={size}M,provider=brant,origin={place}#{}{name}{further}", disk.name));
    }
    words.extend(nics(definition, wishes));
    words.extend(parameters(definition, wishes)?);
    if wishes.no_name_check {
        words.extend(["--no-name-check", "--no-ip-check"].map(str::to_owned));
    }
    match (&wishes.node, &wishes.iallocator) {
        (Some(node), _) => words.push(format!("--node={node}")),
        (None, Some(allocator)) => words.push(format!("--iallocator={allocator}")),
        // The cluster's default chooses.
        (None, None) => {}
    }
    words.extend(["--".to_owned(), wishes.name.clone()]);
    Ok(words)
}

fn nics(definition: Option<&Definition>, wishes: &Wishes) -> Vec<String> {
    if wishes.no_nics {
        return vec!["--no-nics".to_owned()];
    }
    if !wishes.nics.is_empty() {
        return wishes.nics.iter().map(|nic| format!("--net={nic}")).collect();
    }
    // Without a definition Ganeti's default counts, which is one NIC.
    let Some(definition) = definition else { return Vec::new() };
    if definition.nics.is_empty() {
        return vec!["--no-nics".to_owned()];
    }
    let mut words = Vec::new();
    for (number, nic) in definition.nics.iter().enumerate() {
        let mac = nic.mac.as_deref().filter(|_| wishes.keep_mac).unwrap_or("generate");
        let mut word = format!("--net={number}:mac={mac}");
        let mut add = |key: &str, value: &Option<String>| {
            if let Some(value) = value {
                word.push_str(&format!(",{key}={value}"));
            }
        };
        // A network says mode and link itself.
        match &nic.network {
            Some(_) => add("network", &nic.network),
            None => {
                add("mode", &nic.mode);
                add("link", &nic.link);
                add("vlan", &nic.vlan);
            }
        }
        add("ip", &nic.ip);
        add("name", &nic.name);
        words.push(word);
    }
    words
}

fn parameters(definition: Option<&Definition>, wishes: &Wishes) -> Result<Vec<String>, ApiError> {
    let mut words = Vec::new();
    let none = Definition::default();
    let of = definition.unwrap_or(&none);
    let pairs =
        |what: &str, all: &std::collections::BTreeMap<String, Value>, said: &str| -> Result<Vec<String>, ApiError> {
            let said: BTreeSet<&str> = keys(said).collect();
            let kept = all.iter().filter(|(key, _)| !said.contains(key.as_str()));
            kept.map(|(key, value)| scalar(what, key, value).map(|text| format!("{key}={}", escaped(&text))))
                .collect::<Result<_, _>>()
                .map_err(|error| invalid(&error))
        };
    let said = wishes.backend.as_deref().unwrap_or_default();
    // `memory` stands for both.
    let memory = if keys(said).any(|key| key == "memory") { ",minmem=,maxmem=" } else { "" };
    let mut backend = pairs("backend parameter", &of.beparams, &format!("{said}{memory}"))?;
    backend.extend(wishes.backend.clone());
    if !backend.is_empty() {
        words.push(format!("--backend-parameters={}", backend.join(",")));
    }
    let (hypervisor, said) = match &wishes.hypervisor {
        Some(given) => given.split_once(':').unwrap_or((given, "")),
        None => (of.hypervisor.as_str(), ""),
    };
    // Another hypervisor has other parameters.
    let mut all =
        if hypervisor == of.hypervisor { pairs("hypervisor parameter", &of.hvparams, said)? } else { Vec::new() };
    all.extend((!said.is_empty()).then(|| said.to_owned()));
    if !hypervisor.is_empty() {
        let colon = if all.is_empty() { "" } else { ":" };
        words.push(format!("--hypervisor-parameters={hypervisor}{colon}{}", all.join(",")));
    }
    // They are the parameters of that operating system, and of no other.
    let said: BTreeSet<&str> = wishes.os_parameters.as_deref().map(keys).into_iter().flatten().collect();
    let same = wishes.os.as_ref().is_none_or(|os| *os == of.os);
    let kept = of.osparams.iter().filter(|(key, _)| same && !said.contains(key.as_str()));
    let mut all: Vec<_> = kept.map(|(key, value)| format!("{key}={}", escaped(value))).collect();
    all.extend(wishes.os_parameters.clone());
    if !all.is_empty() {
        words.push(format!("--os-parameters={}", all.join(",")));
    }
    words.extend(wishes.os_private.as_ref().map(|private| format!("--os-parameters-private={private}")));
    if !of.tags.is_empty() {
        words.push(format!("--tags={}", of.tags.join(",")));
    }
    Ok(words)
}

/// The disk that parameters are for, and the parameters.
fn disk_of(said: &str) -> (Option<usize>, &str) {
    match said.split_once(':').map(|(number, said)| (number.parse(), said)) {
        Some((Ok(number), said)) => (Some(number), said),
        _ => (None, said),
    }
}

/// The names of parameters that are given.
fn keys(said: &str) -> impl Iterator<Item = &str> {
    said.split(',').filter_map(|pair| pair.split('=').next())
}

/// A value as Ganeti's command line takes it (`utils.UnescapeAndSplit`).
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(disks: &[(&str, u64)]) -> SnapshotDetail {
        let missing = json!({"chunks": 0, "bytes": 0, "nodes": 0});
        let disks: Vec<_> = disks
            .iter()
            .map(|(name, size)| json!({"name": name, "size_bytes": size, "root": null, "missing": missing}))
            .collect();
        serde_json::from_value(json!({
            "bucket": "vms", "object": "web", "version": 3, "id": null, "state": "sealed", "size_bytes": 1, "taken_ms": 1,
            "message": "", "base": null, "disks": disks,
        }))
        .unwrap()
    }

    fn definition() -> Definition {
        let text = json!({
            "version": 1, "name": "web1", "os": "debian+12", "hypervisor": "kvm",
            "hvparams": {"acpi": true, "kernel_args": "ro console=ttyS0,115200\\x"},
            "beparams": {"minmem": 128, "maxmem": 256, "vcpus": 2}, "osparams": {"a": "b,c"},
            "nics": [{"mac": "aa:00:00:00:00:01", "mode": "bridged", "link": "br0", "ip": "10.0.0.1"}, {"network": "lan", "mode": "bridged", "link": "br9"}],
            "disks": [{"name": "root", "size_mib": 1}, {"size_mib": 1}], "tags": ["t1", "t2"],
        });
        Definition::decode(&text.to_string()).unwrap()
    }

    fn made(definition: Option<&Definition>, wishes: &Wishes) -> Vec<String> {
        words("vms/web@3", &detail(&[("disk0", 1 << 20), ("disk1", (1 << 20) + 512)]), definition, wishes).unwrap()
    }

    #[test]
    fn a_definition_becomes_ganetis_words() {
        let wishes = Wishes { name: "web2".to_owned(), node: Some("node1".to_owned()), ..Wishes::default() };
        let expected = [
            "gnt-instance",
            "add",
            "--disk-template=ext",
            "--no-install",
            "--os-type=debian+12",
            "--disk=0:size=1M,provider=brant,origin=vms/web@3#disk0,name=root",
            "--disk=1:size=2M,provider=brant,origin=vms/web@3#disk1",
            "--net=0:mac=generate,mode=bridged,link=br0,ip=10.0.0.1",
            "--net=1:mac=generate,network=lan",
            "--backend-parameters=maxmem=256,minmem=128,vcpus=2",
            "--hypervisor-parameters=kvm:acpi=True,kernel_args=ro console=ttyS0\\,115200\\\\x",
            "--os-parameters=a=b\\,c",
            "--tags=t1,t2",
            "--node=node1",
            "--",
            "web2",
        ];
        assert_eq!(made(Some(&definition()), &wishes), expected);
    }

    #[test]
    fn what_is_said_here_counts() {
        let wishes = Wishes {
            name: "web2".to_owned(),
            os: Some("other".to_owned()),
            no_nics: true,
            backend: Some("memory=1G".to_owned()),
            hypervisor: Some("kvm:acpi=False".to_owned()),
            disks: ["bucket=vms", "1:mode=ro"].map(str::to_owned).to_vec(),
            ..Wishes::default()
        };
        let made = made(Some(&definition()), &wishes);
        for word in [
            "--os-type=other",
            "--no-nics",
            "--backend-parameters=vcpus=2,memory=1G",
            "--hypervisor-parameters=kvm:kernel_args=ro console=ttyS0\\,115200\\\\x,acpi=False",
            "--disk=1:size=2M,provider=brant,origin=vms/web@3#disk1,bucket=vms,mode=ro",
            "--disk=0:size=1M,provider=brant,origin=vms/web@3#disk0,name=root,bucket=vms",
        ] {
            assert!(made.iter().any(|made| made == word), "{word} in {made:?}");
        }
        assert!(!made.iter().any(|word| word.starts_with("--os-parameters") || word.starts_with("--net")), "{made:?}");
        let absent = Wishes { disks: vec!["1:mode=ro".to_owned()], ..Wishes::default() };
        let refused = words("vms/web@3", &detail(&[("disk0", 512)]), Some(&definition()), &absent).unwrap_err();
        assert!(refused.message.contains("none of the number in --disk 1:mode=ro"), "{}", refused.message);
        let keeping = Wishes {
            keep_mac: true,
            os_parameters: Some("b=1".to_owned()),
            os_private: Some("key=secret".to_owned()),
            ..Wishes::default()
        };
        let kept = words("vms/web@3", &detail(&[("disk0", 512)]), Some(&definition()), &keeping).unwrap();
        assert!(kept.iter().any(|word| word.starts_with("--net=0:mac=aa:00:00:00:00:01,")), "{kept:?}");
        let of_os = ["--os-parameters=a=b\\,c,b=1", "--os-parameters-private=key=secret"].map(str::to_owned);
        assert!(kept.windows(2).any(|pair| pair == of_os), "{kept:?}");
    }

    #[test]
    fn a_template_needs_an_operating_system() {
        let refused = words("vms/web@3", &detail(&[("web", 512)]), None, &Wishes::default()).unwrap_err();
        assert!(refused.hint.unwrap().contains("--os NAME"));
        let wishes = Wishes { os: Some("debian".to_owned()), name: "a".to_owned(), ..Wishes::default() };
        let made = words("vms/web@3", &detail(&[("web", 512)]), None, &wishes).unwrap();
        assert_eq!(made[5..], ["--disk=0:size=1M,provider=brant,origin=vms/web@3#web", "--", "a"]);
    }
}
