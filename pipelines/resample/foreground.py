"""Where the head (or the extracted brain) is, and intensities standardised inside it.

The threshold is Li's minimum cross-entropy (Li & Tam 1998): on unstripped heads Otsu's falls between brain and scalp fat and loses the
ventricles and the skull, Li's stays just above air; on extracted brains it keeps the dark CSF. Holes that remain are filled slice by
slice, since a stack of thick slices is open at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.errors import Refused

#: Percentiles of the foreground at which intensities are clipped: vessels, fat and noise spikes must not set the scale.
CLIP_PERCENTILES = (0.5, 99.5)
#: Interquartile range of a normal distribution in standard deviations.
IQR_OF_NORMAL = 1.349
#: Another modality widens the foreground only where the two masks agree at least this well (Dice).
UNION_DICE = 0.7
#: An image whose own support is less than this share of the foreground was cut out (brain-extracted map on a whole head).
OWN_SUPPORT = 0.9
#: Gaps up to this many voxels in-plane (sulci, thin skull) belong to the foreground.
CLOSING = 2


def foreground(images: Sequence[np.ndarray], slice_axis: int) -> np.ndarray:
    """Boolean foreground mask of images on one grid, the reference first.

    Union over the images whose own mask agrees with the reference's (one sequence shows the CSF that another hides). Raises Refused
    where the reference has no contrast.
    """
    mask = head(images[0], slice_axis)
    reference = mask.copy()
    for image in images[1:]:
        try:
            other = head(image, slice_axis)
        except Refused:
            continue
        if 2 * (other & reference).sum() >= UNION_DICE * (other.sum() + reference.sum()):
            mask |= other
    return fill_slices(mask, slice_axis)


def head(image: np.ndarray, slice_axis: int) -> np.ndarray:
    """Largest component above Li's threshold, closed and filled slice by slice."""
    import SimpleITK as sitk
    from scipy import ndimage

    top = np.percentile(image, CLIP_PERCENTILES[1])
    clipped = np.clip(image, 0, top)
    if not top > clipped.min():
        raise Refused("no-foreground", "has no contrast between head and background", "look at the image")
    threshold = sitk.LiThresholdImageFilter()
    threshold.SetNumberOfHistogramBins(256)
    threshold.SetNumberOfThreads(1)
    threshold.Execute(sitk.GetImageFromArray(clipped))
    above = clipped > min(threshold.GetThreshold(), top / 2)
    disc = in_plane_disc(slice_axis)
    mask = largest(ndimage.binary_opening(fill_slices(above, slice_axis), disc))  # filled first: opening alone would break a thin scalp
    margin = [(0 if axis == slice_axis else CLOSING) for axis in range(3)]  # closing must not erode at the array's edge
    padded = np.pad(mask, [(m, m) for m in margin])
    closed = ndimage.binary_closing(padded, disc, iterations=CLOSING)
    return fill_slices(closed[tuple(slice(m, m + n) for m, n in zip(margin, mask.shape, strict=True))], slice_axis)


def in_plane_disc(slice_axis: int) -> np.ndarray:
    """The 4-neighbourhood within a slice."""
    from scipy import ndimage

    return np.expand_dims(ndimage.generate_binary_structure(2, 1), slice_axis)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component."""
    from scipy import ndimage

    components, count = ndimage.label(mask)
    if count == 0:
        raise Refused("no-foreground", "nothing in it stands out from the background", "look at the image")
    return components == np.bincount(components.ravel())[1:].argmax() + 1


def fill_slices(mask: np.ndarray, slice_axis: int) -> np.ndarray:
    """The mask without holes in any slice."""
    from scipy import ndimage

    return np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, slice_axis, 0)], axis=slice_axis)


def standardise(image: np.ndarray, mask: np.ndarray, slice_axis: int) -> np.ndarray:
    """Intensities with median 0 and robust standard deviation 1 inside the mask, 0 outside; float32.

    Clipped at CLIP_PERCENTILES, shifted by the median, divided by IQR / 1.349. Where an image is empty in part of the mask (a map
    computed inside the brain only), that part neither counts nor contributes. Raises Refused for an image without contrast.
    """
    inside = mask
    if (image[mask] == 0).mean() > 1 - OWN_SUPPORT:
        own = fill_slices(image != 0, slice_axis) & mask
        if 0 < own.sum() < OWN_SUPPORT * mask.sum():
            inside = own
    values = image[inside].astype(np.float64)
    low, quarter, middle, three_quarters, high = np.percentile(values, [CLIP_PERCENTILES[0], 25, 50, 75, CLIP_PERCENTILES[1]])
    clipped = np.clip(values, low, high)
    scale = (three_quarters - quarter) / IQR_OF_NORMAL or clipped.std()
    if not scale > 0:
        raise Refused("constant", f"all its voxels in the foreground have the value {middle:g}", "leave it out of the source")
    result = np.zeros(image.shape, np.float32)
    result[inside] = (clipped - middle) / scale
    return result
