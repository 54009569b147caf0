"""What can go wrong, as one tree; every class is also the builtin that a caller would expect.

OclbnError
 ├── ShapeError            (ValueError)   rank, channel count or extent does not fit
 ├── OverlapError          (ValueError)   an output shares memory with something it must not
 ├── ReadOnlyError         (ValueError)   an output that a kernel must not write
 ├── ContextError          (ValueError)   an array or queue of another OpenCL context
 ├── ParameterError        (ValueError)   a number out of its range: epsilon, factor, axis, ...
 ├── ArrayTypeError        (TypeError)    not a pyopencl.array.Array
 ├── DtypeError            (TypeError)    an element type that is not wanted here
 ├── SizeError             (MemoryError)  more memory than the device can give
 ├── DeviceError           (RuntimeError) the device cannot do what was asked
 │    └── DeviceNotFoundError (LookupError) no device, or several, fit the selection
 ├── BuildError            (RuntimeError) a kernel did not compile
 ├── MissingExtraError     (ImportError)  an optional package is not installed
 ├── WeightsError          (ValueError)   a file of weights that cannot be used, or layers that a file cannot hold
 │    └── MissingLayerError (KeyError)    it has no layer of this name
 ├── DerivativeError       (NotImplementedError) a derivative of oclbn.torch's that is not there
 ├── GroupError            (RuntimeError) members of a group do not exchange the same, or one has failed
 │    └── GroupTimeoutError (TimeoutError) a member of a group has not answered in time
 └── ModuleError                          raised by the modules, always as one of
      ├── ModuleShapeError    (ShapeError)
      ├── ModuleDtypeError    (DtypeError)
      ├── ModuleParameterError (ParameterError)
      ├── ModuleNameError     (KeyError)     no variable or attribute has this name
      ├── ModuleStateError    (RuntimeError) called in a state that does not allow it
      └── ModuleFileError     (ValueError)   a parameter file that cannot be used

Warnings, beside the tree:
DriverWarning         (UserWarning) a driver gives wrong results; oclbn goes round the kernels that it gets wrong
SkippedBatchesWarning (UserWarning) the guard of a module left out every channel
ParameterWarning      (UserWarning) an argument has no effect, beside another one or as it is
"""

from __future__ import annotations

import sys
import warnings


def warn_caller(message: str, category: type[Warning]) -> None:
    """A warning that shows the line outside of oclbn that led to it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "oclbn":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


class OclbnError(Exception):
    """Base of everything that oclbn raises on purpose."""


class ShapeError(OclbnError, ValueError):
    """The rank, the channel count or an extent of an array does not fit, or it reaches beyond its buffer."""


class OverlapError(OclbnError, ValueError):
    """An output shares memory with an array that it must not overwrite."""


class ReadOnlyError(OclbnError, ValueError):
    """An array that has to be written lies in a read-only buffer, or names one element twice."""


class ContextError(OclbnError, ValueError):
    """An array or queue belongs to another OpenCL context."""


class ParameterError(OclbnError, ValueError):
    """A number is out of its range."""


class ArrayTypeError(OclbnError, TypeError):
    """An argument is not a pyopencl.array.Array, or one that lies in no buffer."""


class DtypeError(OclbnError, TypeError):
    """An array has an element type that is not wanted here."""


class SizeError(OclbnError, MemoryError):
    """The call needs more memory than the device can give."""


class DeviceError(OclbnError, RuntimeError):
    """The device cannot do what was asked of it."""


class DeviceNotFoundError(DeviceError, LookupError):
    """No device, or more than one, fits the selection; the message lists what there is."""


class BuildError(OclbnError, RuntimeError):
    """A kernel did not compile; the message shows the compiler's words and the numbered lines."""


class MissingExtraError(OclbnError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class WeightsError(OclbnError, ValueError):
    """A file of weights is damaged, foreign or hostile, or cannot hold what is to be written; nothing was changed."""


class MissingLayerError(WeightsError, KeyError):
    """A file has no layer of this name; the message lists those that there are."""

    __str__ = Exception.__str__  # KeyError's would show the message as a quoted string


class DerivativeError(OclbnError, NotImplementedError):
    """A derivative that a function of oclbn.torch's has not: the third, or behind an activation the second."""


class GroupError(OclbnError, RuntimeError):
    """The members of a group do not exchange the same thing, or one of them failed; all are told alike."""


class GroupTimeoutError(GroupError, TimeoutError):
    """A member of a group has not answered within the group's timeout; the group is of no more use."""


class ModuleError(OclbnError):
    """Base of what the modules raise; PuzzleLib's name for it."""


class ModuleShapeError(ModuleError, ShapeError):
    """Data or gradient of the wrong rank, channel count or shape."""


class ModuleDtypeError(ModuleError, DtypeError):
    """Data or gradient of another element type than the module computes with."""


class ModuleParameterError(ModuleError, ParameterError):
    """A constructor or method argument out of its range."""


class ModuleNameError(ModuleError, KeyError):
    """A module has no variable or attribute of this name; the message lists those that there are."""

    __str__ = Exception.__str__  # KeyError's would show the message as a quoted string


class ModuleStateError(ModuleError, RuntimeError):
    """A method was called in a state that does not allow it."""


class ModuleFileError(ModuleError, ValueError):
    """A parameter file is corrupt, foreign or does not fit the module; nothing was loaded."""


class DriverWarning(UserWarning):
    """The device's driver gives wrong results with kernels that oclbn would choose; others are used instead."""


class SkippedBatchesWarning(UserWarning):
    """The guard of a module has left out every channel: batches, the network or the driver give what is not finite."""


class ParameterWarning(UserWarning):
    """An argument has no effect, beside another one or as it is, so that likely something else was meant."""
