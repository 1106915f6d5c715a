//! Blobs in the stores that need a feature: Azure Blob Storage and Google Cloud Storage (`make test-clouds`).

#[cfg(feature = "azure")]
mod azure;
#[cfg(any(feature = "azure", feature = "gcs"))]
mod far;
#[cfg(feature = "gcs")]
mod gcs;

#[cfg(not(all(feature = "azure", feature = "gcs")))]
#[test]
fn a_build_without_them_says_so() {
    use casebook::store::backend::RetrySettings;
    use casebook::store::blob_store::BlobStore;
    use casebook::store::blob_store::open::{Azure, BlobStoreSettings, Gcs, Location};
    use std::time::Duration;

    eprintln!("left out: tests of what this build lacks (make test-clouds)");
    let (name, none) = (|| "name".to_owned(), String::new);
    let gcs = Gcs { bucket: name(), prefix: none(), endpoint: None, credentials: None };
    let azure = Azure {
        container: name(),
        prefix: none(),
        endpoint: None,
        account: Some(name()),
        access_key: None,
    };
    for (feature, has, location) in [
        ("gcs", cfg!(feature = "gcs"), Location::Gcs(gcs)),
        ("azure", cfg!(feature = "azure"), Location::Azure(azure)),
    ] {
        if has {
            continue;
        }
        let (base, timeout) = (Duration::from_millis(1), Duration::from_secs(1));
        let retry = RetrySettings { attempts_max: 1, base, max: base, budget_percent: 10 };
        let settings = BlobStoreSettings { location, timeout, retry };
        let metrics =
            casebook::telemetry::Metrics::new([], casebook::store::blob_store::OPS.iter().copied());
        let error = BlobStore::open(settings, &metrics).err().expect("it is not there");
        assert!(error.to_string().contains(feature), "{error}");
    }
}
