//! Chooses the issuers to send with an EK certificate, if not all of them fit into a request.

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The first certificate, and as many others as fit. First come its issuers, nearest first, then
/// the rest in their order.
///
/// Nothing is verified; the CA looks for a path. An issuer is found by its key identifier (RFC 5280
/// §4.2.1.1), or by its name if there is none (§4.1.2.4), because some vendors write the name of
/// the same CA in two forms.
pub(crate) fn that_fit(certificates: Vec<Vec<u8>>, limit: usize) -> Vec<Vec<u8>> {
    if certificates.len() <= limit {
        return certificates;
    }
    let parsed: Vec<_> = certificates
        .iter()
        .map(|der| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate))
        .collect();
    let mut chosen = vec![0];
    let mut at = 0;
    while at < chosen.len() {
        for (candidate, issuer) in parsed.iter().enumerate() {
            let is_new =
                !chosen.iter().any(|&known| certificates[known] == certificates[candidate]);
            let (Some(subject), Some(issuer)) = (&parsed[chosen[at]], issuer) else { continue };
            // A root is not chosen, because a CA that trusts a root has it.
            if is_new && is_issued_by(subject, issuer) && !is_issued_by(issuer, issuer) {
                chosen.push(candidate);
            }
        }
        at += 1;
    }
    let rest = (0..certificates.len()).filter(|index| !chosen.contains(index)).collect::<Vec<_>>();
    chosen.into_iter().chain(rest).take(limit).map(|index| certificates[index].clone()).collect()
}

fn is_issued_by(subject: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let authority =
        subject.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0)
            }
            _ => None,
        });
    let own = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    match (authority, own) {
        (Some(authority), Some(own)) => authority == own,
        _ => subject.issuer().as_raw() == issuer.subject().as_raw(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        params
    }

    #[test]
    fn those_that_lead_upwards_are_chosen_nearest_first_and_roots_last() {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params("root"), key()).unwrap();
        let upper = CertifiedIssuer::signed_by(params("upper"), key(), &root).unwrap();
        let lower = CertifiedIssuer::signed_by(params("lower"), key(), &upper).unwrap();
        let leaf = params("leaf").signed_by(&key(), &lower).unwrap().der().to_vec();
        let strangers: Vec<_> =
            (0..8).map(|_| params("lower").self_signed(&key()).unwrap().der().to_vec()).collect();
        let (upper, lower) = (upper.der().to_vec(), lower.der().to_vec());
        let root = root.der().to_vec();
        let all =
            [&[leaf.clone()][..], &strangers, &[root, upper.clone(), upper.clone(), lower.clone()]]
                .concat();
        let fitting = that_fit(all.clone(), 6);
        assert_eq!(fitting[..3], [leaf, lower, upper]);
        assert_eq!(fitting[3..], strangers[..3]);
        assert_eq!(that_fit(all.clone(), all.len()), all);
    }
}
