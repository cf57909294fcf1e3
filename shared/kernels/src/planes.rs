//! Depthwise convolution in f32: each output channel is a sum over its own channel's window.
//!
//! Channels are done one by one. A channel's plane is copied into scratch memory first, with its padding, and its columns
//! sorted by their remainder of the stride: then the inputs of neighbouring outputs lie side by side, whatever the stride,
//! and no edge needs care. Outputs are made in tiles of up to [`ROWS`] x [`COLUMNS`], whose sums stay in registers.

use crate::convolution::Invalid;
use crate::{Bounds, Isa, Shape};

/// Columns of a tile.
pub(crate) const COLUMNS: usize = 8;
/// Rows of a tile.
pub(crate) const ROWS: usize = 4;
/// Most elements of a plane in scratch memory.
const PLANE_MAX: usize = 1 << 22;
/// So many of them may be neither input nor padding, beside three times those: a wide stride leaves gaps.
const GAPS_MAX: usize = 1 << 14;

/// Where the channels of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[channels, height, width]`.
    ChannelsFirst,
    /// `[height, width, channels]`.
    ChannelsLast,
}

/// A depthwise convolution with bias and bounds. Immutable: threads share it, each with scratch memory of its own.
#[derive(Clone, Debug)]
pub struct Depthwise {
    isa: Isa,
    shape: Shape,
    order: Order,
    /// `[channel][tap]`.
    weights: Vec<f32>,
    bias: Vec<f32>,
    plane: Plane,
    bounds: Bounds,
}

/// How a padded plane lies in memory: `[row][remainder of the column][column]`.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    /// From a remainder to the next.
    pitch: usize,
    /// From a row to the next.
    row: usize,
    /// Of the plane.
    elements: usize,
    /// Where each tap's input is, from that of the first.
    pub(crate) taps: Vec<usize>,
    /// From an output row's inputs to the next one's.
    pub(crate) step: usize,
    /// Rows and columns of the output.
    pub(crate) output: [usize; 2],
}

impl Plane {
    /// For a shape that was checked.
    fn of(shape: &Shape) -> Result<Self, Invalid> {
        let ([stride_y, stride_x], [dilation_y, dilation_x]) = (shape.stride, shape.dilation);
        let output = shape.output();
        let padded = |axis: usize| shape.pad_begin[axis] + shape.input[axis] + shape.pad_end[axis];
        // A tile may reach beyond the last column.
        let reached = (shape.kernel[1] - 1) * dilation_x / stride_x + output[1].next_multiple_of(COLUMNS);
        let pitch = padded(1).div_ceil(stride_x).max(reached);
        let row = pitch.saturating_mul(stride_x);
        let elements = row.saturating_mul(padded(0));
        let most =
            padded(0).saturating_mul(padded(1)).saturating_mul(4).saturating_add(GAPS_MAX).min(PLANE_MAX);
        if elements > most {
            return Err(Invalid::of(
                "input",
                elements,
                format!("planes in scratch memory of at most {most} elements"),
            ));
        }
        let tap = |y: usize, x: usize| {
            let column = x * dilation_x;
            y * dilation_y * row + column % stride_x * pitch + column / stride_x
        };
        let taps = (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| tap(y, x))).collect();
        Ok(Self { pitch, row, elements, taps, step: row.saturating_mul(stride_y), output })
    }
}

impl Depthwise {
    /// weights: f32 `[channels, height, width]`, bias: f32 `[channels]`; `shape` has as many groups as channels, in and out.
    ///
    /// # Errors
    /// The field that does not fit.
    pub fn new(
        isa: Isa,
        shape: Shape,
        order: Order,
        weights: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self, Invalid> {
        shape.check()?;
        let channels = shape.channels_in;
        if (shape.channels_out, shape.groups) != (channels, channels) {
            return Err(Invalid::of("groups", shape.groups, "as many groups as channels, in and out"));
        }
        let taps = shape.kernel[0] * shape.kernel[1];
        for (field, found, expected) in
            [("weights", weights.len(), channels * taps), ("bias", bias.len(), channels)]
        {
            if found != expected {
                return Err(Invalid::of(field, found, format!("{expected} values")));
            }
        }
        let plane = Plane::of(&shape)?;
        Ok(Self { isa, shape, order, weights, bias, plane, bounds: Bounds::NONE })
    }

    /// Its sizes.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What its outputs are kept within.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Keeps each output within these.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// input: f32 of the shape's input, output: f32 of its output, both in the order given. `scratch` is reused.
    pub fn run(&self, input: &[f32], output: &mut [f32], scratch: &mut Vec<f32>) {
        let [height, width] = self.plane.output;
        let is_first = self.order == Order::ChannelsFirst;
        let (padded, made) = (self.plane.elements, if is_first { 0 } else { height * width });
        scratch.clear();
        scratch.resize(padded + made, 0.0);
        let (padded, made) = scratch.split_at_mut(padded);
        let (channels, pixels) = (self.shape.channels_in, self.shape.input[0] * self.shape.input[1]);
        for channel in 0..channels {
            match self.order {
                Order::ChannelsFirst => {
                    self.pad(&input[channel * pixels..][..pixels], 1, padded);
                    self.channel(channel, padded, &mut output[channel * height * width..][..height * width]);
                }
                Order::ChannelsLast => {
                    self.pad(&input[channel..], channels, padded);
                    self.channel(channel, padded, made);
                    let pixels = output[channel..].iter_mut().step_by(channels);
                    pixels.zip(&*made).for_each(|(pixel, made)| *pixel = *made);
                }
            }
        }
    }

    /// Copies a plane whose elements lie `step` apart between the padding.
    fn pad(&self, input: &[f32], step: usize, padded: &mut [f32]) {
        let ([_, width], [top, left]) = (self.shape.input, self.shape.pad_begin);
        let (stride, plane) = (self.shape.stride[1], &self.plane);
        let rows = padded.chunks_exact_mut(plane.row).skip(top);
        for (row, input) in rows.zip(input.chunks(width * step)) {
            for (remainder, columns) in row.chunks_exact_mut(plane.pitch).enumerate() {
                let first = (remainder + stride - left % stride) % stride;
                if first >= width {
                    continue;
                }
                let to = &mut columns[(first + left) / stride..];
                if step == 1 && stride == 1 {
                    to[..width].copy_from_slice(input);
                } else {
                    let from = input[first * step..].iter().step_by(stride.saturating_mul(step));
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }

    fn channel(&self, channel: usize, padded: &[f32], output: &mut [f32]) {
        let taps = self.plane.taps.len();
        let (weights, bias) = (&self.weights[channel * taps..][..taps], self.bias[channel]);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni | Isa::Avx2 => crate::avx2::plane(&self.plane, padded, weights, bias, output),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod | Isa::Portable => crate::neon::plane(&self.plane, padded, weights, bias, output),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Portable => portable(&self.plane, padded, weights, bias, output),
        }
        self.bounds.keep(output);
    }
}

/// The tiles of an output: its rows, the first row's index and the first column.
pub(crate) fn tiles([height, width]: [usize; 2]) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = (0..height).step_by(ROWS).map(move |first| (first, (height - first).min(ROWS)));
    rows.flat_map(move |(first, rows)| (0..width).step_by(COLUMNS).map(move |column| (rows, first, column)))
}

/// Puts a tile in its place, as far as there is one.
#[inline]
pub(crate) fn put(
    tile: &[[f32; COLUMNS]],
    (first, column): (usize, usize),
    width: usize,
    output: &mut [f32],
) {
    for (at, row) in tile.iter().enumerate() {
        let output = &mut output[(first + at) * width..][column..width];
        match output.first_chunk_mut::<COLUMNS>() {
            Some(output) => *output = *row,
            None => output.copy_from_slice(&row[..output.len()]),
        }
    }
}

#[cfg(not(target_arch = "aarch64"))]
fn portable(plane: &Plane, padded: &[f32], weights: &[f32], bias: f32, output: &mut [f32]) {
    for (rows, first, column) in tiles(plane.output) {
        for row in first..first + rows {
            let mut sums = [bias; COLUMNS];
            for (tap, weight) in plane.taps.iter().zip(weights) {
                let inputs = &padded[row * plane.step + column + tap..][..COLUMNS];
                for (sum, input) in sums.iter_mut().zip(inputs) {
                    *sum += weight * input;
                }
            }
            put(&[sums], (row, column), plane.output[1], output);
        }
    }
}
