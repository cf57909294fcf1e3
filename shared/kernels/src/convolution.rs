//! A convolution made ready: checked, weights packed in the order in which a kernel reads them.

use crate::depthwise::Depthwise;
use crate::gemm::Gemm;
use crate::{Isa, Requantize};

/// Most elements of a window (channels x kernel): their products' sum stays within an int32.
pub const WINDOW_MAX: usize = 1 << 16;
/// Most elements of a tensor.
const ELEMENTS_MAX: usize = 1 << 28;

/// The largest height, width, step or pad: their products fit an usize of 32 bits.
const SIZE_MAX: usize = 1 << 15;
/// Bytes that are copied at once.
const PIECE: usize = 16;

/// What a convolution works on. Two numbers are of height and width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Channels of the input.
    pub channels_in: usize,
    /// Channels of the output.
    pub channels_out: usize,
    /// The window.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Steps between a window's elements.
    pub dilation: [usize; 2],
    /// Rows above and columns to the left that count as zero.
    pub pad_begin: [usize; 2],
    /// Rows below and columns to the right.
    pub pad_end: [usize; 2],
    /// Channels see those of their group only.
    pub groups: usize,
}

/// The filters.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// `[channels_out, channels_in / groups, height, width]`, zero point 0.
    pub values: &'a [i8],
    /// In steps of input scale x weight scale, one for each output channel.
    pub bias: Option<&'a [i32]>,
    /// The input's zero point.
    pub input_zero: i8,
}

/// Why there is no such convolution.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("convolution: `{field}` is {found}, expected {expected}")]
pub struct Invalid {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// What it should be.
    pub expected: String,
}

impl Invalid {
    pub(crate) fn of(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Self { field, found: found.to_string(), expected: expected.into() }
    }
}

/// Memory of one run, reused by the next.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    pub(crate) rows: Vec<i8>,
    pub(crate) places: Vec<usize>,
    pub(crate) wide: Vec<i16>,
}

#[derive(Clone, Debug)]
enum Plan {
    /// One pixel's channels are a row of the product.
    Pointwise(Gemm),
    /// One filter a channel.
    Depthwise(Depthwise),
    /// Windows are gathered into rows, group by group.
    Gather(Vec<Gemm>),
}

/// A convolution with packed weights. Immutable: threads share it, each with a [`Scratch`] of its own.
#[derive(Clone, Debug)]
pub struct Convolution {
    shape: Shape,
    input_zero: i8,
    isa: Isa,
    plan: Plan,
}

impl Shape {
    /// Height and width of the output.
    ///
    /// # Panics
    /// Where [`Self::check`] refuses the shape, at most.
    #[must_use]
    pub fn output(&self) -> [usize; 2] {
        std::array::from_fn(|axis| {
            let window = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = self.input[axis] + self.pad_begin[axis] + self.pad_end[axis];
            (padded - window) / self.stride[axis] + 1
        })
    }

    /// Elements of the input.
    #[must_use]
    pub fn input_elements(&self) -> usize {
        self.input[0] * self.input[1] * self.channels_in
    }

    /// Elements of the output.
    #[must_use]
    pub fn output_elements(&self) -> usize {
        let [height, width] = self.output();
        height * width * self.channels_out
    }

    /// Which input pixel an element of a window is; none in the padding.
    pub(crate) fn pixel(&self, at: [usize; 2], element: [usize; 2]) -> Option<usize> {
        let [y, x] = std::array::from_fn(|axis| {
            let padded = at[axis] * self.stride[axis] + element[axis] * self.dilation[axis];
            padded.checked_sub(self.pad_begin[axis]).filter(|at| *at < self.input[axis])
        });
        Some(y? * self.input[1] + x?)
    }

    /// Whether there is such a convolution.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn check(&self) -> Result<(), Invalid> {
        let refuse = |field, found: usize, expected: &str| Err(Invalid::of(field, found, expected));
        let positive = [
            ("input", self.input[0].min(self.input[1])),
            ("channels_in", self.channels_in),
            ("channels_out", self.channels_out),
            ("kernel", self.kernel[0].min(self.kernel[1])),
            ("stride", self.stride[0].min(self.stride[1])),
            ("dilation", self.dilation[0].min(self.dilation[1])),
            ("groups", self.groups),
        ];
        if let Some((field, found)) = positive.into_iter().find(|(_, found)| *found == 0) {
            return refuse(field, found, "at least 1");
        }
        let all = [self.input, self.kernel, self.stride, self.dilation, self.pad_begin, self.pad_end];
        if let Some(found) = all.as_flattened().iter().find(|found| **found > SIZE_MAX) {
            return refuse("input, kernel, stride, dilation, pad", *found, "at most 32,768 each");
        }
        if !self.channels_in.is_multiple_of(self.groups) || !self.channels_out.is_multiple_of(self.groups) {
            return refuse("groups", self.groups, "a divisor of channels_in and channels_out");
        }
        let window = [self.channels_in / self.groups, self.kernel[0], self.kernel[1]];
        let window = window.into_iter().try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
        if window > WINDOW_MAX {
            return refuse("kernel", window, "windows of at most 65,536 elements");
        }
        for axis in 0..2 {
            let window = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            if window > self.input[axis] + self.pad_begin[axis] + self.pad_end[axis] {
                return refuse("kernel", window, "at most the padded input");
            }
        }
        let input = self.input[0].saturating_mul(self.input[1]).saturating_mul(self.channels_in);
        let [height, width] = self.output();
        let elements = input.max(height.saturating_mul(width).saturating_mul(self.channels_out));
        if elements > ELEMENTS_MAX {
            return refuse("input", elements, "tensors of at most 268,435,456 elements");
        }
        Ok(())
    }
}

impl Convolution {
    /// Checks and packs, for this processor's best kernels.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn new(shape: Shape, weights: &Weights<'_>, requantize: Requantize) -> Result<Self, Invalid> {
        Self::on(Isa::detect(), shape, weights, requantize)
    }

    /// As [`Self::new`], for one instruction set of this processor.
    ///
    /// # Errors
    /// The field that does not fit, and an instruction set that this processor does not have.
    pub fn on(
        isa: Isa,
        shape: Shape,
        weights: &Weights<'_>,
        requantize: Requantize,
    ) -> Result<Self, Invalid> {
        if !Isa::available().contains(&isa) {
            let expected = format!("one of {:?}", Isa::available());
            return Err(Invalid::of("isa", format!("{isa:?}"), expected));
        }
        shape.check()?;
        let window = shape.channels_in / shape.groups * shape.kernel[0] * shape.kernel[1];
        let counts = [
            ("weights", weights.values.len(), shape.channels_out.saturating_mul(window)),
            ("bias", weights.bias.map_or(shape.channels_out, <[i32]>::len), shape.channels_out),
            ("multipliers", requantize.multipliers.len(), shape.channels_out),
        ];
        if let Some((field, found, expected)) =
            counts.into_iter().find(|(_, found, expected)| found != expected)
        {
            return Err(Invalid::of(field, found, expected.to_string()));
        }
        if requantize.min > requantize.max {
            let expected = format!("at most max, {}", requantize.max);
            return Err(Invalid::of("min", requantize.min, expected));
        }
        let input_zero = weights.input_zero;
        let is_depthwise = shape.groups == shape.channels_in && shape.channels_in == shape.channels_out;
        let is_pointwise = (shape.kernel, shape.stride) == ([1, 1], [1, 1])
            && (shape.pad_begin, shape.pad_end) == ([0, 0], [0, 0])
            && shape.groups == 1;
        let plan = if is_depthwise && shape.groups > 1 {
            Plan::Depthwise(Depthwise::pack(isa, &shape, weights, requantize))
        } else {
            let each = shape.channels_out / shape.groups;
            let mut groups = (0..shape.groups)
                .map(|group| Gemm::pack(isa, &shape, weights, &requantize, group * each..(group + 1) * each));
            match groups.next() {
                Some(only) if is_pointwise => Plan::Pointwise(only),
                first => Plan::Gather(first.into_iter().chain(groups).collect()),
            }
        };
        Ok(Self { shape, input_zero, isa, plan })
    }

    /// What it works on.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Runs it: `[height, width, channels]` in and out.
    ///
    /// # Panics
    /// Where input or output have another size than the shape's.
    pub fn run(&self, input: &[i8], output: &mut [i8], scratch: &mut Scratch) {
        assert_eq!(input.len(), self.shape.input_elements(), "elements of the input");
        assert_eq!(output.len(), self.shape.output_elements(), "elements of the output");
        match &self.plan {
            Plan::Pointwise(gemm) if gemm.takes(self.shape.channels_in) => {
                gemm.run(self.isa, input, output, (self.shape.channels_out, 0), &mut scratch.wide);
            }
            Plan::Pointwise(gemm) => self.gather(std::slice::from_ref(gemm), input, output, scratch),
            Plan::Depthwise(depthwise) => depthwise.run(self.isa, &self.shape, input, output, scratch),
            Plan::Gather(groups) => self.gather(groups, input, output, scratch),
        }
    }

    /// One row of output pixels after the other: their windows side by side, then the product.
    fn gather(&self, groups: &[Gemm], input: &[i8], output: &mut [i8], scratch: &mut Scratch) {
        let shape = &self.shape;
        let [height, width] = shape.output();
        let each = shape.channels_in / shape.groups;
        let row_bytes = width * shape.channels_out;
        for y in 0..height {
            let output = &mut output[y * row_bytes..][..row_bytes];
            let mut first_out = 0;
            for (group, gemm) in groups.iter().enumerate() {
                scratch.rows.resize(width * gemm.row_bytes() + PIECE, 0);
                self.windows(input, y, group * each, gemm.row_bytes(), &mut scratch.rows);
                let rows = &scratch.rows[..width * gemm.row_bytes()];
                gemm.run(self.isa, rows, output, (shape.channels_out, first_out), &mut scratch.wide);
                first_out += gemm.channels();
            }
        }
    }

    /// The windows of a row of output pixels, of the channels from `first` on. What a piece writes beyond its end is
    /// overwritten by the next, or counts for nothing.
    fn windows(&self, input: &[i8], y: usize, first: usize, row: usize, rows: &mut [i8]) {
        let shape = &self.shape;
        let (channels, each) = (shape.channels_in, shape.channels_in / shape.groups);
        let [kernel_height, kernel_width] = shape.kernel;
        // Side by side in the input as in the window.
        let is_whole = shape.groups == 1 && shape.dilation[1] == 1;
        for x in 0..shape.output()[1] {
            let mut to = x * row;
            for ky in 0..kernel_height {
                let ends = [0, kernel_width - 1].map(|kx| shape.pixel([y, x], [ky, kx]));
                if let ([Some(begin), Some(_)], true) = (ends, is_whole) {
                    copy(&input[begin * channels..], &mut rows[to..], kernel_width * channels);
                    to += kernel_width * channels;
                    continue;
                }
                for kx in 0..kernel_width {
                    match shape.pixel([y, x], [ky, kx]) {
                        Some(pixel) => copy(&input[pixel * channels + first..], &mut rows[to..], each),
                        None => rows[to..to + each].fill(self.input_zero),
                    }
                    to += each;
                }
            }
        }
    }
}

/// Copies so many bytes, and some more where both have them: a copy of one size needs no loop.
#[inline(always)]
fn copy(from: &[i8], to: &mut [i8], count: usize) {
    match (count <= PIECE, from.first_chunk::<PIECE>(), to.first_chunk_mut::<PIECE>()) {
        (true, Some(from), Some(to)) => *to = *from,
        _ => to[..count].copy_from_slice(&from[..count]),
    }
}
