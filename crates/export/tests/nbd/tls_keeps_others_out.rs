//! TLS: who has no certificate gets nothing, who has one gets all, and the bytes are the same.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use export::nbd::option::{
    NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_LIST, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY,
    NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_UNSUP,
};
use export::{NbdOptions, Tls, TlsError};
use tempfile::TempDir;

use crate::client::{Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};
use crate::tool::{Said, installed, run};

const MIB: usize = 1 << 20;

/// Certificates of a made-up authority.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes some, or says what is missing to make them.
    fn made() -> Option<Certificates> {
        let made = installed(&["certtool"]).then(|| Certificates { directory: tempfile::tempdir().unwrap() })?;
        made.key("ca-key.pem");
        made.text("ca.info", "cn = Test\nca\ncert_signing_key\n");
        made.certtool(
            &["--generate-self-signed", "--load-privkey", "ca-key.pem", "--template", "ca.info"],
            "ca-cert.pem",
        );
        made.issue(
            "server",
            "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\n",
        );
        made.issue("client", "cn = alice\ntls_www_client\nsigning_key\n");
        Some(made)
    }

    fn issue(&self, who: &str, template: &str) {
        self.text("issue.info", template);
        self.key(&format!("{who}-key.pem"));
        let key = format!("{who}-key.pem");
        let authority = ["--load-ca-certificate", "ca-cert.pem", "--load-ca-privkey", "ca-key.pem"];
        let what = ["--generate-certificate", "--load-privkey", &key, "--template", "issue.info"];
        self.certtool(&[&what[..], &authority].concat(), &format!("{who}-cert.pem"));
    }

    fn key(&self, name: &str) {
        self.certtool(&["--generate-privkey", "--key-type", "ed25519"], name);
    }

    fn certtool(&self, arguments: &[&str], output: &str) {
        run(self.path(), "certtool", &[arguments, &["--outfile", output]].concat()).content();
    }

    fn text(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A copy of some of the files, by itself.
    fn only(&self, names: &[&str]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            fs::copy(self.path().join(name), directory.path().join(name)).unwrap();
        }
        directory
    }

    fn options(&self, required: bool) -> NbdOptions {
        NbdOptions { tls: Some(Tls::new(self.path(), required).unwrap()), ..NbdOptions::default() }
    }
}

/// A URI as libnbd has it, with certificates.
fn uri(server: &Server, certificates: &Path) -> String {
    let (socket, certificates) = (server.socket(), certificates.display());
    format!("nbds+unix:///disk?socket={}&tls-certificates={certificates}", socket.display())
}

fn nbdinfo(uri: &str) -> Said {
    let directory = tempfile::tempdir().unwrap();
    run(directory.path(), "nbdinfo", &["--size", uri])
}

#[test]
fn where_tls_is_required_nothing_is_told_without() {
    let Some(certificates) = Certificates::made() else { return };
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), certificates.options(true));
    assert!(server.uri().starts_with("nbds+unix:///disk?"), "{}", server.uri());
    let mut client = server.connect();
    client.greet();
    for (option, data) in
        [(NBD_OPT_LIST, &[][..]), (NBD_OPT_STRUCTURED_REPLY, &[]), (NBD_OPT_GO, b"\0\0\0\x04disk\0\0"), (99, &[])]
    {
        assert_eq!(client.option(option, data)[0].reply, NBD_REP_ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(client.option(NBD_OPT_STARTTLS, b"now")[0].reply, NBD_REP_ERR_INVALID);
    assert_eq!(client.option(NBD_OPT_ABORT, &[])[0].reply, NBD_REP_ACK);
    let mut client = server.connect();
    client.greet();
    client.send_option(NBD_OPT_EXPORT_NAME, b"disk");
    assert!(client.ended());
}

#[test]
fn what_is_said_in_the_clear_after_starttls_is_not_heard() {
    let Some(certificates) = Certificates::made() else { return };
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), certificates.options(false));
    let mut client = server.connect();
    client.greet();
    client.send_option(NBD_OPT_STARTTLS, &[]);
    client.send_option(NBD_OPT_LIST, &[]);
    let mut heard = Vec::new();
    // Twenty bytes acknowledge; what else comes is an alert of TLS, and then the end.
    drop(client.stream.read_to_end(&mut heard));
    assert!((20..20 + 64).contains(&heard.len()), "{heard:?}");
    let mut client = server.connect();
    client.greet();
    assert_eq!(client.option(NBD_OPT_STARTTLS, &[])[0].reply, NBD_REP_ACK);
    client.stream.write_all(&[0x16, 3, 1, 0xff, 0xff]).unwrap();
    client.stream.write_all(&vec![7; 70_000]).unwrap_or_default();
    drop(client);
    eventually("both are gone", || server.nbd().connections("disk") == 0);
    assert_eq!(server.simple().read(0, 512), pattern(0, 512));
}

#[test]
fn without_certificates_tls_is_not_known() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    let mut client = server.connect();
    client.greet();
    assert_eq!(client.option(NBD_OPT_STARTTLS, &[])[0].reply, NBD_REP_ERR_UNSUP);
}

#[test]
fn only_clients_that_the_authority_has_signed_are_served() {
    let Some(certificates) = Certificates::made().filter(|_| installed(&["nbdinfo"])) else { return };
    let strangers = Certificates::made().unwrap();
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), certificates.options(true));
    assert_eq!(nbdinfo(&uri(&server, certificates.path())).content().trim(), MIB.to_string());
    let anonymous = certificates.only(&["ca-cert.pem"]);
    fs::copy(certificates.path().join("ca-cert.pem"), strangers.path().join("ca-cert.pem")).unwrap();
    for refused in [anonymous.path(), strangers.path()] {
        assert!(!nbdinfo(&uri(&server, refused)).status.success(), "{}", refused.display());
    }
    // Nor without TLS, which the client would try next.
    assert!(!nbdinfo(&server.uri().replace("nbds", "nbd")).status.success());
    // A server that knows no authority asks its clients for nothing.
    let public = certificates.only(&["server-cert.pem", "server-key.pem"]);
    let tls = Some(Tls::new(public.path(), true).unwrap());
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), NbdOptions { tls, ..NbdOptions::default() });
    assert_eq!(nbdinfo(&uri(&server, anonymous.path())).content().trim(), MIB.to_string());
}

#[test]
fn where_tls_is_allowed_both_ways_lead_in() {
    let Some(certificates) = Certificates::made().filter(|_| installed(&["nbdinfo"])) else { return };
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), certificates.options(false));
    assert_eq!(server.simple().read(512, 512), pattern(512, 512));
    assert_eq!(nbdinfo(&uri(&server, certificates.path())).content().trim(), MIB.to_string());
}

#[test]
fn renewed_certificates_count_from_the_next_connection_on() {
    let Some(certificates) = Certificates::made().filter(|_| installed(&["nbdinfo"])) else { return };
    let server = Server::with(&Arc::new(MemoryDisk::patterned(MIB)), certificates.options(true));
    nbdinfo(&uri(&server, certificates.path())).content();
    let renewed = Certificates::made().unwrap();
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        fs::copy(renewed.path().join(name), certificates.path().join(name)).unwrap();
    }
    nbdinfo(&uri(&server, renewed.path())).content();
    assert!(!nbdinfo(&uri(&server, certificates.path())).status.success(), "the old client certificate");
}

#[test]
fn certificates_that_cannot_be_used_are_a_clear_error() {
    let Some(certificates) = Certificates::made() else { return };
    let error = |directory: &Path| Tls::new(directory, true).unwrap_err();
    let without_key = certificates.only(&["server-cert.pem"]);
    assert!(matches!(error(without_key.path()), TlsError::File { path, .. } if path.ends_with("server-key.pem")));
    fs::copy(certificates.path().join("client-key.pem"), without_key.path().join("server-key.pem")).unwrap();
    assert!(matches!(error(without_key.path()), TlsError::Certificates { .. }));
    certificates.text("ca-cert.pem", "nothing\n");
    assert!(matches!(error(certificates.path()), TlsError::Empty { path } if path.ends_with("ca-cert.pem")));
}

#[test]
fn copies_through_tls_are_equal() {
    let Some(certificates) = Certificates::made().filter(|_| installed(&["nbdcopy", "qemu-img"])) else { return };
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (Arc::new(MemoryDisk::patterned(8 * MIB)), Arc::new(MemoryDisk::new(8 * MIB)));
    let from = Server::with(&source, certificates.options(true));
    let to = Server::with(&target, certificates.options(true));
    let (from_uri, to_uri) = (uri(&from, certificates.path()), uri(&to, certificates.path()));
    run(directory.path(), "nbdcopy", &["--connections=4", "--requests=32", &from_uri, &to_uri]).content();
    assert!(target.bytes(0, 8 * MIB) == source.bytes(0, 8 * MIB));
    run(directory.path(), "nbdcopy", &["--connections=1", &to_uri, "copy.raw"]).content();
    assert!(fs::read(directory.path().join("copy.raw")).unwrap() == source.bytes(0, 8 * MIB));
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", certificates.path().display());
    let image = |server: &Server| {
        let socket: PathBuf = server.socket();
        let place = format!("driver=nbd,server.type=unix,server.path={},export=disk", socket.display());
        format!("{place},tls-creds=tls0,tls-hostname=localhost")
    };
    let arguments = ["compare", "--object", &credentials, "--image-opts", &image(&from), &image(&to)];
    run(directory.path(), "qemu-img", &arguments).content();
}
