//! Certificate policies along a path, if the verifier accepts *any policy* (RFC 5280 §6.1).
//!
//! The RFC keeps a tree of policies, which can grow exponentially. If any policy is accepted, only
//! one thing matters: whether the tree is empty. That depends only on the expected policies of its
//! lowest level, so one set is enough.

use std::collections::{BTreeMap, BTreeSet};

use crate::oid;

/// What one certificate says about policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policies {
    /// certificatePolicies (§4.2.1.4). Qualifiers are ignored, because they are only for display.
    pub(crate) policies: Option<BTreeSet<Oid>>,
    /// policyMappings (§4.2.1.5): from the issuer's domain to the subject's.
    pub(crate) mappings: Vec<(Oid, Oid)>,
    /// requireExplicitPolicy (§4.2.1.11).
    pub(crate) require_explicit: Option<u32>,
    /// inhibitPolicyMapping (§4.2.1.11).
    pub(crate) inhibit_mapping: Option<u32>,
    /// inhibitAnyPolicy (§4.2.1.14).
    pub(crate) inhibit_any: Option<u32>,
}

/// The content of a DER OBJECT IDENTIFIER.
pub(crate) type Oid = Vec<u8>;

/// The state variables of §6.1.2 that concern policies.
#[derive(Clone, Debug)]
pub(crate) struct PolicyState {
    /// Union of the expected policy sets on the lowest level of the valid policy tree; empty if the
    /// tree is empty.
    expected: BTreeSet<Oid>,
    explicit_policy: u32,
    policy_mapping: u32,
    inhibit_any: u32,
}

/// The path needs a valid policy and has none, or a certificate has a forbidden mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PolicyBroken;

impl PolicyState {
    /// The verifier demands nothing. Only certificates do.
    pub(crate) fn new() -> Self {
        let expected = [oid::ANY_POLICY.to_vec()].into();
        Self {
            expected,
            explicit_policy: u32::MAX,
            policy_mapping: u32::MAX,
            inhibit_any: u32::MAX,
        }
    }

    /// §6.1.3 (d) to (f).
    pub(crate) fn process(&mut self, certificate: &Policies) -> Result<(), PolicyBroken> {
        let is_any = |policy: &Oid| policy == oid::ANY_POLICY;
        let was_any = self.expected.iter().any(is_any);
        self.expected = match &certificate.policies {
            None => BTreeSet::new(),
            Some(policies) => {
                let mut valid: BTreeSet<_> = policies
                    .iter()
                    .filter(|policy| {
                        !is_any(policy) && (was_any || self.expected.contains(*policy))
                    })
                    .cloned()
                    .collect();
                if policies.iter().any(is_any) && self.inhibit_any > 0 {
                    valid.append(&mut self.expected);
                }
                valid
            }
        };
        self.check()
    }

    /// §6.1.4 (a), (b), (h) to (j), for every certificate except the last.
    pub(crate) fn prepare_for_next(&mut self, certificate: &Policies) -> Result<(), PolicyBroken> {
        let mut mappings = BTreeMap::<_, Vec<_>>::new();
        for (from, to) in &certificate.mappings {
            if from == oid::ANY_POLICY || to == oid::ANY_POLICY {
                return Err(PolicyBroken);
            }
            mappings.entry(from).or_default().push(to);
        }
        let is_any = self.expected.contains(oid::ANY_POLICY);
        let mut mapped = Vec::new();
        for (from, to) in mappings {
            if (self.expected.remove(from) || is_any) && self.policy_mapping > 0 {
                mapped.extend(to.into_iter().cloned());
            }
        }
        self.expected.extend(mapped);

        for counter in [&mut self.explicit_policy, &mut self.policy_mapping, &mut self.inhibit_any]
        {
            *counter = counter.saturating_sub(1);
        }
        let limit = |counter: &mut u32, limit: Option<u32>| {
            *counter = limit.map_or(*counter, |limit| limit.min(*counter))
        };
        limit(&mut self.explicit_policy, certificate.require_explicit);
        limit(&mut self.policy_mapping, certificate.inhibit_mapping);
        limit(&mut self.inhibit_any, certificate.inhibit_any);
        Ok(())
    }

    /// §6.1.5 (a), (b), (g), for the last certificate.
    pub(crate) fn wrap_up(mut self, certificate: &Policies) -> Result<(), PolicyBroken> {
        self.explicit_policy = self.explicit_policy.saturating_sub(1);
        if certificate.require_explicit == Some(0) {
            self.explicit_policy = 0;
        }
        self.check()
    }

    fn check(&self) -> Result<(), PolicyBroken> {
        if self.explicit_policy == 0 && self.expected.is_empty() {
            Err(PolicyBroken)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(list: &[&str]) -> Policies {
        Policies {
            policies: Some(list.iter().map(|policy| named(policy)).collect()),
            ..Policies::default()
        }
    }

    fn named(policy: &str) -> Oid {
        if policy == "any" { oid::ANY_POLICY.to_vec() } else { policy.as_bytes().to_vec() }
    }

    fn mapping(mut from: Policies, mappings: &[(&str, &str)]) -> Policies {
        from.mappings = mappings.iter().map(|(from, to)| (named(from), named(to))).collect();
        from
    }

    /// Runs the path from the first certificate below the anchor. The anchor demands
    /// `require_explicit`.
    fn run(require_explicit: Option<u32>, path: &[Policies]) -> Result<(), PolicyBroken> {
        let mut state = PolicyState::new();
        state.prepare_for_next(&Policies { require_explicit, ..Policies::default() })?;
        let (last, issuers) = path.split_last().unwrap();
        for issuer in issuers {
            state.process(issuer)?;
            state.prepare_for_next(issuer)?;
        }
        state.process(last)?;
        state.wrap_up(last)
    }

    #[test]
    fn without_a_demand_any_policies_will_do_and_none_too() {
        for path in [[policies(&["a"]), policies(&["b"])], [Policies::default(), policies(&["b"])]]
        {
            assert_eq!(run(None, &path), Ok(()));
        }
    }

    #[test]
    fn a_demanded_policy_must_go_through_the_path() {
        for (path, result) in [
            (vec![policies(&["a"]), policies(&["a"])], Ok(())),
            (vec![policies(&["any"]), policies(&["a"])], Ok(())),
            (vec![policies(&["a"]), policies(&["any"])], Ok(())),
            (vec![policies(&["a", "b"]), policies(&["b"])], Ok(())),
            (vec![policies(&["a"]), policies(&["b"])], Err(PolicyBroken)),
            (vec![policies(&["a"]), Policies::default()], Err(PolicyBroken)),
            (vec![Policies::default(), policies(&["a"])], Err(PolicyBroken)),
        ] {
            assert_eq!(run(Some(0), &path), result, "{path:?}");
        }
    }

    #[test]
    fn a_demand_holds_from_as_many_certificates_on_as_it_says() {
        let path = [Policies::default(), Policies::default()];
        assert_eq!(run(Some(1), &path), Err(PolicyBroken));
        assert_eq!(run(Some(2), &path), Err(PolicyBroken), "the last one counts down once more");
        assert_eq!(run(Some(3), &path), Ok(()));
        let late = Policies { require_explicit: Some(0), ..Policies::default() };
        assert_eq!(run(None, &[Policies::default(), late.clone()]), Err(PolicyBroken));
        assert_eq!(run(None, &[late, Policies::default()]), Err(PolicyBroken));
    }

    #[test]
    fn mappings_rename_what_is_expected() {
        let mapped = mapping(policies(&["a"]), &[("a", "b")]);
        assert_eq!(run(Some(0), &[mapped.clone(), policies(&["b"])]), Ok(()));
        assert_eq!(run(Some(0), &[mapped.clone(), policies(&["a"])]), Err(PolicyBroken));
        let of_any = mapping(policies(&["any"]), &[("a", "b")]);
        assert_eq!(run(Some(0), &[of_any, policies(&["b"])]), Ok(()));
        let inhibiting = Policies { inhibit_mapping: Some(0), ..policies(&["a"]) };
        assert_eq!(run(Some(0), &[inhibiting, mapped, policies(&["b"])]), Err(PolicyBroken));
        for forbidden in [("any", "a"), ("a", "any")] {
            assert_eq!(
                run(None, &[mapping(policies(&["a"]), &[forbidden]), policies(&["a"])]),
                Err(PolicyBroken)
            );
        }
    }

    #[test]
    fn any_policy_can_be_inhibited() {
        let inhibiting = Policies { inhibit_any: Some(0), ..policies(&["any"]) };
        assert_eq!(run(Some(0), &[inhibiting.clone(), policies(&["any"])]), Err(PolicyBroken));
        assert_eq!(run(Some(0), &[inhibiting.clone(), policies(&["a"])]), Ok(()));
        assert_eq!(run(None, &[inhibiting, policies(&["any"])]), Ok(()), "if nothing is demanded");
    }
}
