//! What the CA's decisions cost for one device, step by step and as a whole, compared with the bare
//! cryptography in them.
//!
//! `cargo xtask bench core` runs this and prints the ratios.

mod support;

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use assay_ca_core::{
    Admitted, BoundKey, Evidence, FlowKind, Issued, ParentEvidence, Proven, SharedKeyFlow,
};
use assay_wire::{ReplyBody, Request, RequestBody, RequestId};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion};

use support::{Case, Flow, Kind, Primitives, Requests, World};

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ratios", pairs, filter] => {
            ratios(pairs.parse().expect("the number of pairs is a number"), filter)
        }
        ["counts", filter] => counts(filter),
        ["hostile", rounds] => hostile(rounds.parse().expect("the number of rounds is a number")),
        _ => steps_and_primitives(),
    }
}

/// Times whole and primitives in turn, one device each, so that other work of the machine affects
/// both alike. Prints a line for each case, tab-separated: medians of both in nanoseconds, then the
/// quartiles of their ratio.
#[expect(clippy::disallowed_methods, reason = "it measures what decides without a clock")]
fn ratios(pairs: usize, filter: &str) {
    for_each_case(filter, |name, whole, primitives| {
        let time = |run: &dyn Fn() -> usize| {
            let begin = Instant::now();
            black_box(run());
            begin.elapsed().as_secs_f64() * 1e9
        };
        (0..pairs / WARM_UP).for_each(|_| _ = (whole(), primitives()));
        let (mut wholes, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (whole, bare) = (time(whole), time(primitives));
            wholes.push(whole);
            bares.push(bare);
            ratios.push(whole / bare);
        }
        let quartile = |values: &mut Vec<f64>, quarter| {
            values.sort_by(f64::total_cmp);
            values[quarter * (values.len() - 1) / 4]
        };
        let (whole, bare) = (quartile(&mut wholes, 2), quartile(&mut bares, 2));
        let [low, middle, high] = [1, 2, 3].map(|quarter| quartile(&mut ratios, quarter));
        println!("{name}\t{whole}\t{bare}\t{low}\t{middle}\t{high}");
    });
}

/// Times refused requests and honest ones with as many certificates, in turn. Prints a line for
/// each, tab-separated: keys, number of certificates, kind of attempt, medians of both in
/// nanoseconds.
#[expect(clippy::disallowed_methods, reason = "it measures what decides without a clock")]
fn hostile(rounds: usize) {
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let time = |run: &dyn Fn() -> usize| {
        let begin = Instant::now();
        black_box(run());
        begin.elapsed().as_secs_f64() * 1e9
    };
    for (kind, certificates) in
        Kind::ALL.into_iter().flat_map(|kind| [1, 2, 3, 6].map(|count| (kind, count)))
    {
        let requests = Requests::new(kind, certificates);
        for (name, run) in requests.hostile() {
            let (mut honest, mut hostile) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                honest.push(time(&|| requests.honest()));
                hostile.push(time(&run));
            }
            let (honest, hostile) = (median(honest), median(hostile));
            println!("{}\t{}\t{name}\t{hostile}\t{honest}", kind.name(), requests.certificates);
        }
    }
}

/// For callgrind, which counts from the beginning of each [`measured`] to its end. Prints a line
/// for each, tab-separated: case, whole or primitives, number of devices.
fn counts(filter: &str) {
    for_each_case(filter, |name, whole, primitives| {
        for (what, run) in [("whole", whole), ("primitives", primitives)] {
            // The library makes its tables and seeds its generator when it is first used.
            black_box(run());
            measured(run);
            println!("{name}\t{what}\t{DEVICES}");
        }
    });
}

#[inline(never)]
fn measured(run: &dyn Fn() -> usize) {
    for _ in 0..DEVICES {
        black_box(run());
    }
}

fn for_each_case(filter: &str, run: impl Fn(&str, &dyn Fn() -> usize, &dyn Fn() -> usize)) {
    for (case, flow) in everything().filter(|(case, flow)| case.name(*flow).contains(filter)) {
        let world = World::new(case);
        let primitives = Primitives::new(&world, flow);
        run(&case.name(flow), &*world.whole(flow), &|| primitives.all());
    }
}

fn everything() -> impl Iterator<Item = (Case, Flow)> {
    Case::ALL.into_iter().flat_map(|case| case.flows().iter().map(move |flow| (case, *flow)))
}

fn steps_and_primitives() {
    let mut criterion = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .nresamples(2000)
        .configure_from_args();
    for (case, flow) in everything() {
        let mut group = criterion.benchmark_group(case.name(flow));
        for (name, primitive) in Primitives::new(&World::new(case), flow).each() {
            group.bench_function(format!("primitive, {name}"), |b| b.iter(primitive));
        }
        steps(&mut group, case, flow);
        group.finish();
    }
    criterion.final_summary();
}

/// Steps that consume their input get it outside of the measured time.
fn steps(group: &mut BenchmarkGroup<'_, WallTime>, case: Case, flow: Flow) {
    let world = &World::new(case);
    let first = world.first_message(flow);
    step(group, "request decode", || Request::decode(black_box(&first)));
    match flow {
        Flow::Ticket => ticket(group, world),
        Flow::Sealed => sealed(group, world),
        Flow::SharedKey => shared_key(group, world),
    }
}

fn ticket(group: &mut BenchmarkGroup<'_, WallTime>, world: &World) {
    let (admitted, ik) = applicant(group, world);
    step(group, "challenge", || world.challenge(&admitted, &ik));
    let challenge = world.challenge(&admitted, &ik);
    reply(group, "challenge encode", ReplyBody::Challenge(challenge));

    let proof = world.proof();
    let message = World::message(RequestBody::Certify(proof.clone()));
    step(group, "proof decode", || Request::decode(black_box(&message)));
    step(group, "proven device verify", || world.prove(black_box(&proof)));
    step_of(group, "readmit", || world.prove(&proof), |device| world.readmit(device));
    let readmitted = || world.readmit(world.prove(&proof));
    step_of(group, "prepare", readmitted, |device| world.prepare(device));
    step_of(group, "sign", || world.prepare(readmitted()), Issued::<Proven>::sign);
    let certificate = Issued::<Proven>::sign(world.prepare(readmitted())).unwrap();
    step(group, "certificate encode", || {
        let reply = certificate.reply();
        World::reply(ID, ReplyBody::Certificate(reply))
    });
}

fn sealed(group: &mut BenchmarkGroup<'_, WallTime>, world: &World) {
    let (admitted, ik) = applicant(group, world);
    step(group, "candidate", || world.candidate(&admitted, &ik));
    let candidate = world.candidate(&admitted, &ik);
    step_of(group, "plan", || candidate.clone(), |candidate| world.plan_sealing(candidate));
    let sealing = || world.plan_sealing(candidate.clone());
    step_of(group, "sign and seal", sealing, |sealing| world.seal(sealing));
    let (sealed, certificate) = world.seal(sealing());
    let body = ReplyBody::Sealed(sealed);
    let proof = world.open(&World::reply(ID, body.clone()));
    reply(group, "sealed encode", body);

    let message = World::message(RequestBody::Confirm(proof));
    let unconfirmed = World::unconfirmed(&certificate);
    step(group, "confirmation", || world.answer_confirm(&message, &unconfirmed));
}

fn shared_key(group: &mut BenchmarkGroup<'_, WallTime>, world: &World) {
    let bundle = world.parent_bundle();
    step_of(group, "evidence parse", || bundle.clone(), ParentEvidence::parse);
    let evidence = ParentEvidence::parse(bundle.clone()).unwrap();
    step(group, "trusted EK verify", || world.trust(&evidence.ek));
    step(group, "parent", || evidence.parent());
    step_of(
        group,
        "admission",
        || world.trust(&evidence.ek),
        |ek| world.admit::<SharedKeyFlow>(ek),
    );
    let parent = evidence.parent().unwrap();
    let admitted = || world.admit(world.trust(&evidence.ek));
    step_of(group, "activation", admitted, |admitted| world.activate(admitted, &parent));
    let activation = world.activate(admitted(), &parent);
    reply(group, "activation encode", ReplyBody::Activation(activation));
    let token = world.token();
    step(group, "token verify", || world.login(&token));
}

/// The steps that the flows with a certificate share.
fn applicant<F: FlowKind>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    world: &World,
) -> (Admitted<F>, BoundKey) {
    step_of(group, "evidence parse", || world.device.request(), Evidence::parse);
    let evidence = world.device.evidence();
    step(group, "trusted EK verify", || world.trust(&evidence.ek));
    step(group, "bound key verify", || BoundKey::verify(black_box(&evidence)));
    step_of(group, "admission", || world.trust(&evidence.ek), |ek| world.admit::<F>(ek));
    (world.admit(world.trust(&evidence.ek)), BoundKey::verify(&evidence).unwrap())
}

fn step<T>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, run: impl Fn() -> T) {
    group.bench_function(format!("step, {name}"), |b| b.iter(&run));
}

fn step_of<I, T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    input: impl Fn() -> I,
    run: impl Fn(I) -> T,
) {
    group.bench_function(format!("step, {name}"), |b| {
        b.iter_batched(&input, &run, BatchSize::SmallInput)
    });
}

fn reply(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, body: ReplyBody) {
    step_of(group, name, || body.clone(), |body| World::reply(ID, body));
}

const ID: RequestId = RequestId::NIL;
/// How many devices' instructions are counted together, because signatures do not always take the
/// same number.
const DEVICES: usize = 20;
/// One pair in this many is run first, as a warm-up that is not measured.
const WARM_UP: usize = 10;
