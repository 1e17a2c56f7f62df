//! What a certificate said of a TPM, as it is on record: in JSON.

use assay_ca_core::{CaKey, EkFacts, TpmModel};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Column {
    vendor: String,
    tpm: Option<[String; 3]>,
    issuers: Vec<String>,
}

pub(crate) fn json(EkFacts { vendor, tpm, issuers }: &EkFacts) -> String {
    let tpm =
        tpm.clone().map(|TpmModel { manufacturer, model, version }| [manufacturer, model, version]);
    let issuers = issuers.iter().map(CaKey::to_string).collect();
    let column = Column { vendor: vendor.clone(), tpm, issuers };
    serde_json::to_string(&column).expect("text has a form in JSON")
}

pub(crate) fn read(json: &str) -> Result<EkFacts, StoreError> {
    let Column { vendor, tpm, issuers } =
        serde_json::from_str(json).map_err(StoreError::unreadable)?;
    let tpm = tpm.map(|[manufacturer, model, version]| TpmModel { manufacturer, model, version });
    let issuers = issuers.iter().map(|issuer| issuer.parse()).collect::<Result<_, _>>();
    Ok(EkFacts { vendor, tpm, issuers: issuers.map_err(StoreError::unreadable)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_read_back_as_they_are_written() {
        let tpm = TpmModel {
            manufacturer: "id:494E5443".into(),
            model: "SLB \"9670\"".into(),
            version: "id:00070055".into(),
        };
        let issuers = vec!["ab".repeat(32).parse().unwrap()];
        let full = EkFacts { vendor: "CN=Acme, O=\u{FFFD}".into(), tpm: Some(tpm), issuers };
        for facts in [full, EkFacts::default()] {
            assert_eq!(read(&json(&facts)).unwrap(), facts);
        }
        assert!(read("{}").is_err());
    }
}
