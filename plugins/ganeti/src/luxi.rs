//! Asking Ganeti what it knows: its query daemon, on the master, over the socket that Ganeti's own commands use.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// The query daemon's socket (`pathutils.QUERY_SOCKET`), there on the master only.
const SOCKET: &str = "/run/ganeti/socket/ganeti-query";

/// The file that names the master, on every node.
const MASTER: &str = "/var/lib/ganeti/ssconf_master_node";

/// The file that names all instances, on every node.
const INSTANCES: &str = "/var/lib/ganeti/ssconf_instance_list";

/// What ends a message.
const END: u8 = 3;

/// How long the daemon may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Ganeti could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LuxiError {
    /// This node is not the master.
    #[error("only Ganeti's master knows that, and it is {master}")]
    NotMaster {
        /// The master's name.
        master: String,
    },
    /// There is no daemon.
    #[error("Ganeti does not answer at {SOCKET}")]
    Connect(#[source] io::Error),
    /// It answers with something else.
    #[error("Ganeti's answer could not be understood")]
    Answer,
    /// What is asked for is not there.
    #[error("Ganeti says: {0}")]
    Unknown(String),
    /// It refuses.
    #[error("Ganeti says: {0}")]
    Refused(String),
}

/// Ganeti's query daemon.
#[derive(Clone, Debug)]
pub struct Luxi {
    socket: PathBuf,
    master: PathBuf,
    instances: PathBuf,
}

impl Default for Luxi {
    fn default() -> Self {
        Self { socket: SOCKET.into(), master: MASTER.into(), instances: INSTANCES.into() }
    }
}

impl Luxi {
    fn connect(&self) -> Result<UnixStream, LuxiError> {
        UnixStream::connect(&self.socket).map_err(|error| {
            let master = std::fs::read_to_string(&self.master).unwrap_or_default().trim().to_owned();
            let own = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
            if master.is_empty() || master == own.trim() {
                LuxiError::Connect(error)
            } else {
                LuxiError::NotMaster { master }
            }
        })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// When Ganeti does not answer, or says no.
    pub fn call(&self, method: &str, arguments: &Value) -> Result<Value, LuxiError> {
        let mut stream = self.connect()?;
        let mut message = json!({"method": method, "args": arguments}).to_string().into_bytes();
        message.push(END);
        let patience = Some(PATIENCE);
        let asked = stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(patience));
        asked.and_then(|()| stream.write_all(&message)).map_err(LuxiError::Connect)?;
        let mut answer = Vec::new();
        let mut part = [0; 1 << 16];
        while answer.last() != Some(&END) {
            match stream.read(&mut part).map_err(LuxiError::Connect)? {
                0 => return Err(LuxiError::Answer),
                count => answer.extend_from_slice(&part[..count]),
            }
            if answer.len() as u64 > MAX_ANSWER_BYTES {
                return Err(LuxiError::Answer);
            }
        }
        answer.pop();
        let mut answer: Map<String, Value> = serde_json::from_slice(&answer).map_err(|_| LuxiError::Answer)?;
        let result = answer.remove("result").unwrap_or_default();
        match answer.get("success").and_then(Value::as_bool) {
            Some(true) => Ok(result),
            Some(false) => Err(refusal(&result)),
            None => Err(LuxiError::Answer),
        }
    }

    /// Asks for fields of all that a filter finds; what is unknown or unavailable is null.
    ///
    /// # Errors
    /// As [`Luxi::call`].
    pub fn query(&self, what: &str, fields: &[&str], filter: &Value) -> Result<Vec<Vec<Value>>, LuxiError> {
        let mut answer = self.call("Query", &json!([what, fields, filter]))?;
        let data = answer.get_mut("data").map(Value::take).unwrap_or_default();
        let rows: Vec<Vec<(u64, Value)>> = serde_json::from_value(data).map_err(|_| LuxiError::Answer)?;
        let value = |(status, value)| if status == 0 { value } else { Value::Null };
        Ok(rows.into_iter().map(|row| row.into_iter().map(value).collect()).collect())
    }
}

impl Luxi {
    /// The names of all instances of the cluster: as the master knows them, and on another node as it was last told by the master.
    ///
    /// # Errors
    /// When neither is to be had.
    pub fn instances(&self) -> Result<Vec<String>, LuxiError> {
        match self.query("instance", &["name"], &Value::Null) {
            Ok(rows) => {
                let name = |row: Vec<Value>| row.into_iter().next()?.as_str().map(str::to_owned);
                rows.into_iter().map(|row| name(row).ok_or(LuxiError::Answer)).collect()
            }
            Err(error @ LuxiError::NotMaster { .. }) => {
                let told = std::fs::read_to_string(&self.instances).map_err(|_| error)?;
                Ok(told.lines().map(str::to_owned).collect())
            }
            Err(error) => Err(error),
        }
    }
}

/// What a refusal says: `[KIND, [TEXT, CODE]]`, or something else.
fn refusal(result: &Value) -> LuxiError {
    let text = result[1][0].as_str().map_or_else(|| result.to_string(), str::to_owned);
    if result[1][1] == "unknown_entity" { LuxiError::Unknown(text) } else { LuxiError::Refused(text) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn luxi_in(directory: &Path) -> Luxi {
        let place = |name| directory.join(name);
        Luxi { socket: place("query"), master: place("master"), instances: place("instances") }
    }

    fn answering(answer: &'static str) -> (tempfile::TempDir, Luxi) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("query");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut byte = [0];
            while client.read(&mut byte).unwrap() == 1 && byte[0] != END {}
            client.write_all(answer.as_bytes()).unwrap();
        });
        let luxi = luxi_in(directory.path());
        (directory, luxi)
    }

    #[test]
    fn answers_are_told_from_refusals_and_nonsense() {
        let (_directory, luxi) = answering("{\"success\":true,\"result\":{\"data\":[[[0,\"web\"],[2,null]]]}}\x03");
        assert_eq!(luxi.query("instance", &["name", "os"], &Value::Null).unwrap(), [[json!("web"), Value::Null]]);
        let (_directory, luxi) = answering("{\"success\":false,\"result\":[\"no\"]}\x03");
        assert!(matches!(luxi.call("Query", &json!([])).unwrap_err(), LuxiError::Refused(text) if text.contains("no")));
        let (_directory, luxi) =
            answering("{\"success\":false,\"result\":[\"OpPrereqError\",[\"web not found\",\"unknown_entity\"]]}\x03");
        assert!(
            matches!(luxi.call("Query", &json!([])).unwrap_err(), LuxiError::Unknown(text) if text == "web not found")
        );
        for nonsense in [
            "",
            "{",
            "{}\x03",
            "[]\x03",
            "{\"success\":true,\"result\":[]}\x03",
            "{\"success\":true,\"result\":{\"data\":7}}\x03",
        ] {
            let (_directory, luxi) = answering(nonsense);
            assert!(luxi.query("instance", &[], &Value::Null).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn another_node_names_the_master() {
        let directory = tempfile::tempdir().unwrap();
        let luxi = luxi_in(directory.path());
        assert!(matches!(luxi.call("Query", &json!([])).unwrap_err(), LuxiError::Connect(_)));
        std::fs::write(&luxi.master, "node1.example.invalid\n").unwrap();
        let error = luxi.call("Query", &json!([])).unwrap_err();
        assert!(error.to_string().ends_with("it is node1.example.invalid"), "{error}");
    }
    #[test]
    fn all_instances_are_told_by_the_master_or_by_what_it_has_told() {
        let (_directory, luxi) =
            answering("{\"success\":true,\"result\":{\"data\":[[[0,\"web1\"]],[[0,\"web2\"]]]}}\x03");
        assert_eq!(luxi.instances().unwrap(), ["web1", "web2"]);
        let (_directory, luxi) = answering("{\"success\":true,\"result\":{\"data\":[[[2,null]]]}}\x03");
        assert!(
            matches!(luxi.instances().unwrap_err(), LuxiError::Answer),
            "an instance without a name is none that is gone"
        );

        let directory = tempfile::tempdir().unwrap();
        let luxi = luxi_in(directory.path());
        std::fs::write(&luxi.master, "node1.example.invalid\n").unwrap();
        assert!(
            matches!(luxi.instances().unwrap_err(), LuxiError::NotMaster { .. }),
            "nothing is known: nothing is gone"
        );
        std::fs::write(&luxi.instances, "web1\nweb2\n").unwrap();
        assert_eq!(luxi.instances().unwrap(), ["web1", "web2"]);
        // The master's own daemon is asked or nobody.
        std::fs::write(&luxi.master, "").unwrap();
        assert!(matches!(luxi.instances().unwrap_err(), LuxiError::Connect(_)));
    }
}
