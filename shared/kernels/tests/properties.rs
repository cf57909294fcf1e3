//! Every kernel of this processor gives the definition's answers, bit by bit, whatever the shape.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use muster_kernels::{
    Bounds, Convolution, Dense, Depthwise, Isa, Order, Requantize, Scratch, Shape, WINDOW_MAX, Weights,
    reference,
};
use proptest::prelude::*;

/// How groups divide the channels.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Dense,
    Depthwise,
    Grouped,
}

prop_compose! {
    fn axis()(kernel in 1..5_usize, stride in 1..4_usize, dilation in 1..3_usize)
        (pad_begin in 0..=kernel, pad_end in 0..=kernel, more in 0..9_usize,
         (kernel, stride, dilation) in Just((kernel, stride, dilation))) -> [usize; 6] {
        let window = dilation * (kernel - 1) + 1;
        let input = (window + more).saturating_sub(pad_begin + pad_end).max(1);
        let input = if input + pad_begin + pad_end < window { window } else { input };
        [input, kernel, stride, dilation, pad_begin, pad_end]
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let kind = prop_oneof![Just(Kind::Dense), Just(Kind::Depthwise), Just(Kind::Grouped)];
    (axis(), axis(), kind, 1..40_usize, 1..40_usize, 2..4_usize).prop_map(|(y, x, kind, a, b, groups)| {
        let (channels_in, channels_out, groups) = match kind {
            Kind::Dense => (a, b, 1),
            Kind::Depthwise => (a, a, a),
            Kind::Grouped => (a.div_ceil(4) * groups, b.div_ceil(4) * groups, groups),
        };
        let at = |index: usize| [y[index], x[index]];
        Shape {
            input: at(0),
            channels_in,
            channels_out,
            kernel: at(1),
            stride: at(2),
            dilation: at(3),
            pad_begin: at(4),
            pad_end: at(5),
            groups,
        }
    })
}

/// Bytes of every value, the extremes more often, from a seed.
fn bytes(count: usize, mut seed: u64) -> Vec<i8> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            match seed >> 60 {
                0 => i8::MIN,
                1 => i8::MAX,
                _ => (seed >> 40) as i8,
            }
        })
        .collect()
}

fn check(shape: &Shape, seed: u64, input_zero: i8, zero: i8, min: i8, scale: f32) {
    let window = shape.channels_in / shape.groups * shape.kernel[0] * shape.kernel[1];
    let values = bytes(shape.channels_out * window, seed);
    let bias: Vec<i32> =
        bytes(shape.channels_out, seed ^ 1).into_iter().map(|b| i32::from(b) * 1_000).collect();
    let weights = Weights { values: &values, bias: Some(&bias), input_zero };
    let multipliers = (0..shape.channels_out).map(|channel| scale * (1.0 + channel as f32 / 7.0)).collect();
    let requantize = Requantize { multipliers, zero, min, max: i8::MAX };
    let input = bytes(shape.input_elements(), seed ^ 2);
    let expected = reference(shape, &weights, &requantize, &input);
    for isa in Isa::available() {
        let convolution = Convolution::on(isa, shape.clone(), &weights, requantize.clone()).unwrap();
        let (mut found, mut scratch) = (vec![0; shape.output_elements()], Scratch::default());
        // Twice: what the first run left in the scratch does not matter.
        for _ in 0..2 {
            found.fill(0x55);
            convolution.run(&input, &mut found, &mut scratch);
            assert!(found == expected, "{isa:?} {shape:?}: {found:?} against {expected:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn kernels_agree_with_the_definition(
        shape in shapes(),
        seed: u64,
        input_zero: i8,
        zero: i8,
        min in prop_oneof![Just(i8::MIN), any::<i8>()],
        scale in 1e-6..0.02_f32,
    ) {
        check(&shape, seed, input_zero, zero, min.min(zero), scale);
    }
}

fn square(input: usize, channels_in: usize, channels_out: usize, kernel: usize, groups: usize) -> Shape {
    let (kernel, pad) = ([kernel; 2], [kernel / 2; 2]);
    let (stride, dilation) = ([1; 2], [1; 2]);
    let input = [input; 2];
    Shape { input, channels_in, channels_out, kernel, stride, dilation, pad_begin: pad, pad_end: pad, groups }
}

/// `cargo xtask arm` names what its emulated processor should take: a kernel that is not found would be tested by none.
#[test]
fn the_named_instruction_set_is_the_one_that_is_taken() {
    let Ok(named) = std::env::var("MUSTER_KERNELS_ISA") else { return };
    assert_eq!(format!("{:?}", Isa::detect()), named);
}

#[test]
fn the_largest_sums_are_exact() {
    // Each product is 2^14 or so, all of one sign.
    let shape = square(1, WINDOW_MAX, 1, 1, 1);
    for (value, weight) in [(i8::MIN, i8::MIN), (i8::MAX, i8::MIN), (i8::MIN, i8::MAX)] {
        let values = vec![weight; WINDOW_MAX];
        let weights = Weights { values: &values, bias: None, input_zero: 0 };
        let sum = i32::from(value) * i32::from(weight) * WINDOW_MAX as i32;
        let multipliers = vec![100.0 / sum as f32];
        let requantize = Requantize { multipliers, zero: 0, min: i8::MIN, max: i8::MAX };
        for isa in Isa::available() {
            let convolution = Convolution::on(isa, shape.clone(), &weights, requantize.clone()).unwrap();
            let mut found = [0];
            convolution.run(&vec![value; WINDOW_MAX], &mut found, &mut Scratch::default());
            assert_eq!(found, [100], "{isa:?}");
        }
    }
}

#[test]
fn halves_are_rounded_to_even() {
    let input: Vec<i8> = (i8::MIN..=i8::MAX).collect();
    let expected: Vec<i8> =
        input.iter().map(|value| (f32::from(*value) / 2.0).round_ties_even() as i8).collect();
    assert_eq!(expected[128 - 5..128 + 6], [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]);
    for (groups, channels) in [(1, 1), (2, 2)] {
        let shape = Shape { input: [1, 256 / channels], ..square(1, channels, channels, 1, groups) };
        let weights = Weights { values: &vec![1; channels], bias: None, input_zero: 0 };
        let requantize = Requantize { multipliers: vec![0.5; channels], zero: 0, min: i8::MIN, max: i8::MAX };
        assert_eq!(reference(&shape, &weights, &requantize, &input), expected);
        for isa in Isa::available() {
            let convolution = Convolution::on(isa, shape.clone(), &weights, requantize.clone()).unwrap();
            let mut found = vec![0; 256];
            convolution.run(&input, &mut found, &mut Scratch::default());
            assert_eq!(found, expected, "{isa:?}, {groups} groups");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_the_field() {
    let refused = |shape: Shape| {
        let window = shape.channels_in / shape.groups.max(1) * shape.kernel[0] * shape.kernel[1];
        let values = vec![0; (shape.channels_out * window).min(1 << 20)];
        let weights = Weights { values: &values, bias: None, input_zero: 0 };
        let multipliers = vec![1.0; shape.channels_out];
        let requantize = Requantize { multipliers, zero: 0, min: i8::MIN, max: i8::MAX };
        Convolution::new(shape, &weights, requantize).map(drop)
    };
    let good = square(4, 4, 8, 3, 1);
    assert_eq!(refused(good.clone()), Ok(()));
    let field = |shape: Shape| refused(shape).unwrap_err().field;
    assert_eq!(field(Shape { stride: [0, 1], ..good.clone() }), "stride");
    assert_eq!(field(Shape { groups: 0, ..good.clone() }), "groups");
    assert_eq!(field(Shape { groups: 3, ..good.clone() }), "groups");
    assert_eq!(field(Shape { kernel: [9, 9], ..good.clone() }), "kernel");
    assert_eq!(field(square(1, WINDOW_MAX + 1, 1, 1, 1)), "kernel");
    assert_eq!(field(Shape { input: [1 << 15, 1 << 15], ..good.clone() }), "input");
    assert_eq!(
        field(Shape { pad_end: [(1 << 15) + 1, 1], ..good.clone() }),
        "input, kernel, stride, dilation, pad"
    );
    let values = vec![0; 8 * 36];
    let weights = Weights { values: &values[1..], bias: None, input_zero: 0 };
    let requantize = Requantize { multipliers: vec![1.0; 8], zero: 0, min: i8::MIN, max: i8::MAX };
    let text = Convolution::new(good.clone(), &weights, requantize).unwrap_err().to_string();
    assert_eq!(text, "convolution: `weights` is 287, expected 288");
    let values = vec![0; 8 * 36];
    let weights = Weights { values: &values, ..weights };
    let requantize = Requantize { multipliers: vec![1.0; 8], zero: 0, min: 5, max: 4 };
    assert_eq!(Convolution::new(good, &weights, requantize).unwrap_err().field, "min");
}

/// Numbers of -1 to 1 in steps of 1/128: sums of a few hundred products are exact in f32.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    bytes(count, seed).into_iter().map(|byte| f32::from(byte) / 128.0).collect()
}

proptest! {
    #[test]
    fn a_row_by_a_matrix_is_the_sum_of_its_products(
        inputs in 1..200_usize, outputs in 1..200_usize, seed in any::<u64>(), bias in any::<bool>(),
        bounds in prop_oneof![Just(None), Just(Some((0.0, 6.0))), Just(Some((0.0, f32::INFINITY)))],
    ) {
        let (row, weights) = (numbers(inputs, seed), numbers(inputs * outputs, !seed));
        let added = if bias { numbers(outputs, seed ^ 1) } else { vec![0.0; outputs] };
        let (low, high) = bounds.unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        for isa in Isa::available() {
            let mut layer = Dense::new(isa, outputs, inputs, |output, input| weights[output * inputs + input]);
            if bias {
                layer = layer.with_bias(added.clone());
            }
            if bounds.is_some() {
                layer = layer.with_bounds(Bounds::new(low, high).unwrap());
            }
            prop_assert_eq!(layer.size(), (inputs, outputs));
            let mut found = vec![f32::NAN; outputs];
            layer.run(&row, &mut found);
            for (output, found) in found.into_iter().enumerate() {
                let products = row.iter().zip(&weights[output * inputs..]);
                let sum: f32 = products.map(|(a, b)| a * b).sum();
                let expected = (sum + added[output]).clamp(low, high);
                prop_assert_eq!(found, expected, "{:?}, output {}", isa, output);
            }
        }
    }
}

/// A depthwise convolution by its definition, `[channels, height, width]`.
fn depthwise(shape: &Shape, input: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let ([height, width], [down, across]) = (shape.output(), shape.kernel);
    let at = |channel: usize, y: isize, x: isize| {
        let inside = |at: isize, axis: usize| usize::try_from(at).ok().filter(|at| *at < shape.input[axis]);
        let (Some(y), Some(x)) = (inside(y, 0), inside(x, 1)) else { return 0.0 };
        input[(channel * shape.input[0] + y) * shape.input[1] + x]
    };
    let place = |axis: usize, out: usize, tap: usize| {
        (out * shape.stride[axis] + tap * shape.dilation[axis]) as isize - shape.pad_begin[axis] as isize
    };
    let mut output = Vec::new();
    for channel in 0..shape.channels_in {
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let taps = (0..down).flat_map(|i| (0..across).map(move |j| (i, j)));
            let sum: f32 = taps
                .map(|(i, j)| {
                    weights[(channel * down + i) * across + j] * at(channel, place(0, y, i), place(1, x, j))
                })
                .sum();
            output.push(sum + bias[channel]);
        }
    }
    output
}

/// From `[channels, pixels]` to `[pixels, channels]`.
fn turned(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|at| values[at % channels * pixels + at / channels]).collect()
}

proptest! {
    #[test]
    fn planes_by_filters_are_the_definitions(
        y in axis(), x in axis(), channels in 1..12_usize, more in 0..40_usize, seed in any::<u64>(), bounded in any::<bool>(),
    ) {
        let at = |index: usize| [y[index], x[index]];
        let shape = Shape {
            input: [y[0], x[0] + more],
            channels_in: channels,
            channels_out: channels,
            kernel: at(1),
            stride: at(2),
            dilation: at(3),
            pad_begin: at(4),
            pad_end: at(5),
            groups: channels,
        };
        let input = numbers(shape.input_elements(), seed);
        let (weights, bias) =
            (numbers(channels * shape.kernel[0] * shape.kernel[1], !seed), numbers(channels, seed ^ 1));
        let mut expected = depthwise(&shape, &input, &weights, &bias);
        if bounded {
            expected.iter_mut().for_each(|sum| *sum = sum.clamp(0.0, 0.5));
        }
        let mut scratch = Vec::new();
        for isa in Isa::available() {
            for order in [Order::ChannelsFirst, Order::ChannelsLast] {
                let mut layer = Depthwise::new(isa, shape.clone(), order, weights.clone(), bias.clone()).unwrap();
                if bounded {
                    layer = layer.with_bounds(Bounds::new(0.0, 0.5).unwrap());
                }
                let mut found = vec![f32::NAN; shape.output_elements()];
                if order == Order::ChannelsFirst {
                    layer.run(&input, &mut found, &mut scratch);
                    prop_assert_eq!(&found, &expected, "{:?}", isa);
                } else {
                    layer.run(&turned(&input, channels), &mut found, &mut scratch);
                    prop_assert_eq!(&found, &turned(&expected, channels), "{:?}", isa);
                }
            }
        }
    }
}

#[test]
fn planes_that_do_not_fit_are_refused_with_the_field() {
    let shape = Shape {
        input: [4, 4],
        channels_in: 2,
        channels_out: 2,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad_begin: [1, 1],
        pad_end: [1, 1],
        groups: 2,
    };
    let refused = |shape: &Shape, weights: usize, bias: usize| {
        let made = Depthwise::new(
            Isa::Portable,
            shape.clone(),
            Order::ChannelsFirst,
            vec![0.0; weights],
            vec![0.0; bias],
        );
        made.unwrap_err().to_string()
    };
    assert!(refused(&shape, 17, 2).contains("weights"), "{}", refused(&shape, 17, 2));
    assert!(refused(&shape, 18, 3).contains("bias"));
    assert!(refused(&Shape { groups: 1, ..shape.clone() }, 18, 2).contains("groups"));
    assert!(refused(&Shape { stride: [0, 1], ..shape.clone() }, 18, 2).contains("stride"));
    let wide = Shape { pad_begin: [30_000; 2], stride: [30_000; 2], ..shape };
    assert!(refused(&wide, 18, 2).contains("scratch memory"), "{}", refused(&wide, 18, 2));
    let gaps = Shape {
        input: [2_048, 2],
        kernel: [1, 2],
        stride: [1, 4_096],
        pad_begin: [0; 2],
        pad_end: [0; 2],
        ..shape
    };
    assert!(refused(&gaps, 4, 2).contains("at most 32768 elements"), "{}", refused(&gaps, 4, 2));
}

#[test]
fn bounds_that_leave_nothing_are_none() {
    let bounds = |low, high| Bounds::new(low, high);
    let relu = bounds(0.0, f32::INFINITY).unwrap();
    assert_eq!(relu.and(bounds(f32::NEG_INFINITY, 6.0).unwrap()), bounds(0.0, 6.0));
    assert_eq!(relu.and(bounds(f32::NEG_INFINITY, -1.0).unwrap()), None);
    assert_eq!((bounds(1.0, 0.0), bounds(f32::NAN, 0.0)), (None, None));
    assert_eq!(relu.and(Bounds::NONE), Some(relu));
}
