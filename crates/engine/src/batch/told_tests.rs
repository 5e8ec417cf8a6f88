//! What people are told of a program, of its batches and of its inputs: a whole
//! program over a log, whose graph, operators and lag are compared with what was put in.

use crate::{StreamingContext, Trigger, ingest::tests, testing::SqlProgram};
use std::sync::Arc;
use tidemill_core::{BatchId, Clock, Duration, ManualClock, NodeKind, Stage, Timestamp};

const PROGRAM: &str = "
    CREATE STREAM lines WITH (connector = 'idle');
    CREATE VIEW words AS SELECT unnest(words(value)) AS word FROM lines;
    CREATE VIEW top AS SELECT word, count(*) AS n FROM words GROUP BY word ORDER BY n DESC LIMIT 10";

#[test]
fn a_program_is_told_as_a_graph_and_each_batch_with_what_its_operators_gave() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(Timestamp(1_000_000_000))));
    let time = Arc::clone(&clock) as Arc<dyn Clock>;
    let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2).data_dir(dir.path()).clock(time);
    let mut program = SqlProgram::over(builder.registry(tests::registry()).build());
    program.start(PROGRAM).unwrap();
    let board = program.context().board();

    let graph = board.graph();
    let of = |id: &str| {
        graph.nodes.iter().find(|node| node.id == id).unwrap_or_else(|| panic!("no {id} in {:#?}", graph.nodes))
    };
    assert_eq!(of("input lines").kind, NodeKind::Input);
    let top = of("operator top");
    assert_eq!((top.kind, top.stateful, top.what.as_str()), (NodeKind::Operator, true, "aggregate"));
    assert!(top.definition.as_ref().is_some_and(|text| text.contains("GROUP BY word")), "{top:?}");
    assert_eq!(top.inputs, ["input lines"], "the view without state is a part of it");
    let output = of("output top");
    assert_eq!((output.what.as_str(), &output.inputs), ("view", &vec!["operator top".to_string()]));
    assert!(output.plan.as_ref().is_some_and(|plan| plan.contains("top: state")), "{output:?}");
    assert_eq!(output.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["word", "n"]);
    let known: Vec<_> = graph.nodes.iter().map(|node| &node.id).collect();
    let mut inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    assert!(inputs.all(|input| known.contains(&input)), "{graph:#?}");

    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap();
    topic.append(0, &tests::lines(["sea tide sea", "mill"]), None).unwrap();
    program.step().unwrap();
    let report = board.report(BatchId(1)).unwrap();
    let detail = &report.detail;
    assert_eq!(detail.ranges["lines"][0].to_string(), "0[0, 2)");
    assert_eq!(detail.records["lines"], 2);
    let rows = |name: &str| detail.operators.iter().find(|operator| operator.name == name).map(|o| o.rows);
    assert_eq!((rows("lines"), rows("top")), (Some(2), Some(3)), "{detail:#?}");
    let given: Vec<_> = detail.outputs.iter().map(|output| (output.name.as_str(), output.rows)).collect();
    assert_eq!(given, [("words", 4), ("top", 3)]);

    // For traces: what was read of which range, and what went on until the commit.
    assert_eq!(detail.bytes["lines"], "sea tide seamill".len() as u64);
    let reads: Vec<_> = detail.reads.iter().map(|r| (r.stream.as_str(), r.range.to_string(), r.records)).collect();
    assert_eq!(reads, [("lines", "0[0, 2)".to_string(), 2)]);
    let stages: Vec<_> = detail.stages.iter().map(|stage| (stage.stage, stage.of.as_deref())).collect();
    let outputs = [(Stage::Output, Some("words")), (Stage::Output, Some("top"))];
    assert!(outputs.iter().all(|output| stages[..2].contains(output)), "{stages:?}");
    let parts = [Stage::Commit, Stage::Inputs, Stage::Checkpoint, Stage::Ledger];
    assert_eq!(stages[2..], parts.map(|part| (part, None)));
    assert!(detail.operators.iter().all(|operator| operator.at.is_some()), "{detail:#?}");

    // What no batch has read is told, too: at most once a second.
    topic.append(0, &tests::lines(["unread", "and more"]), None).unwrap();
    assert!(!program.pipeline().lags_are_due(), "the batch was just now");
    clock.advance(Duration::from_secs(2));
    assert!(program.pipeline().lags_are_due());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(program.pipeline().tell_of_lags());
    let input = &board.inputs()[0];
    assert_eq!((input.stream.as_str(), input.lag), ("lines", Some(2)), "{input:?}");
    assert_eq!((input.partitions[0].position.0, input.partitions[0].lag), (2, Some(2)), "{input:?}");
}
