//! Files that are there, change, are missing, or are nobody's business.

use std::sync::Arc;

use base64::Engine;
use tempfile::TempDir;

use super::*;
use crate::tls::tests::Authority;

const A: &str = "spiffe://cluster.local/ns/default/sa/a";

fn pem(kind: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

fn write_pair(directory: &TempDir, credential: &Credential) {
    std::fs::create_dir_all(directory.path().join("etc")).unwrap();
    std::fs::write(directory.path().join("etc/c.pem"), pem("CERTIFICATE", &credential.chain[0])).unwrap();
    std::fs::write(directory.path().join("etc/k.pem"), pem("PRIVATE KEY", credential.key.secret_der())).unwrap();
}

fn pair() -> CertificateSource {
    CertificateSource::Files { chain: "/etc/c.pem".into(), key: "/etc/k.pem".into() }
}

fn nothing() -> watch::Receiver<Option<Arc<Credential>>> {
    watch::channel(None).1
}

#[tokio::test(start_paused = true)]
async fn files_are_read_again_when_they_have_changed_and_are_the_same_otherwise() {
    let (ca, directory) = (Authority::new("root"), TempDir::new().unwrap());
    write_pair(&directory, &ca.credential(A));
    std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
    let secrets = Secrets::new(nothing(), Some(directory.path().to_owned()));
    let roots = RootsSource::File("/ca.pem".into());
    let first = secrets.materials(Some(&pair()), Some(&roots)).await.unwrap();
    assert_eq!(first.roots.as_ref().unwrap().len(), 1);
    tokio::time::advance(FRESH * 2).await;
    assert!(secrets.materials(Some(&pair()), Some(&roots)).await.unwrap().same(&first));
    // A new pair, and as long as the old one is believed it is shown.
    write_pair(&directory, &ca.with(A, &[A], &["a.example.com"], Duration::from_secs(3600), ca.roots()));
    let old = secrets.materials(Some(&pair()), Some(&roots)).await.unwrap();
    assert!(old.same(&first));
    tokio::time::advance(FRESH * 2).await;
    let new = secrets.materials(Some(&pair()), Some(&roots)).await.unwrap();
    assert!(!new.same(&first) && new.certified.as_ref().unwrap().cert != first.certified.unwrap().cert);
    // One that has been spoiled takes nothing down.
    std::fs::write(directory.path().join("etc/c.pem"), "x").unwrap();
    std::fs::remove_file(directory.path().join("ca.pem")).unwrap();
    tokio::time::advance(FRESH * 2).await;
    assert!(secrets.materials(Some(&pair()), Some(&roots)).await.unwrap().same(&new));
}

#[tokio::test]
async fn no_file_outside_of_the_directory_is_read() {
    let directory = TempDir::new().unwrap();
    let ask = async |directory: Option<PathBuf>, name: &str| {
        let secrets = Secrets::new(nothing(), directory);
        secrets.materials(None, Some(&RootsSource::File(name.into()))).await.unwrap_err()
    };
    let home = || Some(directory.path().to_owned());
    assert!(matches!(ask(None, "/etc/hostname").await, SecretError::NoDirectory { .. }));
    assert!(matches!(ask(home(), "../x").await, SecretError::Outside { .. }));
    assert!(matches!(ask(home(), "/a/../../x").await, SecretError::Outside { .. }));
    // It is there on the node, but not in the directory.
    let SecretError::File { path, .. } = ask(home(), "/etc/hostname").await else { panic!() };
    assert_eq!(path, directory.path().join("etc/hostname"));
}

#[tokio::test]
async fn what_a_file_lacks_is_said_and_which_one() {
    let (ca, directory) = (Authority::new("root"), TempDir::new().unwrap());
    let secrets = || Secrets::new(nothing(), Some(directory.path().to_owned()));
    let why = async || match secrets().materials(Some(&pair()), None).await.unwrap_err() {
        SecretError::File { path, why } => (path.file_name().unwrap().to_str().unwrap().to_owned(), why),
        other => panic!("{other}"),
    };
    assert_eq!(why().await.0, "c.pem");
    write_pair(&directory, &ca.credential(A));
    secrets().materials(Some(&pair()), None).await.unwrap();
    std::fs::write(directory.path().join("etc/k.pem"), "x").unwrap();
    assert_eq!(why().await.0, "k.pem");
    let other = ca.credential(A);
    std::fs::write(directory.path().join("etc/k.pem"), pem("PRIVATE KEY", other.key.secret_der())).unwrap();
    let (file, why_not) = why().await;
    assert!(file == "k.pem" && why_not.contains("does not fit"), "{file}: {why_not}");
    std::fs::write(directory.path().join("etc/c.pem"), vec![b'x'; usize::try_from(MAX_FILE).unwrap() + 1]).unwrap();
    assert!(why().await.1.contains("larger than"));
    std::fs::remove_file(directory.path().join("etc/c.pem")).unwrap();
    std::fs::create_dir(directory.path().join("etc/c.pem")).unwrap();
    assert_eq!(why().await.1, "is no file");
}

#[tokio::test]
async fn the_workload_s_own_are_waited_for_and_follow_its_rotation() {
    let ca = Authority::new("root");
    let (sender, receiver) = watch::channel(None);
    let secrets = Secrets::new(receiver, None);
    let (own, roots) = (CertificateSource::Workload, RootsSource::Workload);
    let ask = || secrets.materials(Some(&own), Some(&roots));
    assert!(tokio::time::timeout(Duration::from_millis(20), ask()).await.is_err());
    sender.send_replace(Some(ca.credential(A)));
    let first = ask().await.unwrap();
    assert!(first.same(&ask().await.unwrap()));
    sender.send_replace(Some(ca.credential(A)));
    assert!(!first.same(&ask().await.unwrap()));
    drop(sender);
    let gone = Secrets::new(nothing(), None);
    assert!(matches!(gone.materials(Some(&own), None).await, Err(SecretError::NoCredential)));
}
