"""Pictures without a screen: the OpenGL backend is chosen before MuJoCo's renderer needs one."""
import ctypes
import ctypes.util
import os
import sys
from collections.abc import Sequence
from functools import lru_cache

import mujoco
import numpy as np


def _egl_works() -> bool:
    """Whether some device of EGL initialises; asked of the library itself, because PyOpenGL can be set up only once."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
            egl.eglGetProcAddress(b"eglQueryDevicesEXT"))
        display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
            egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT"))
        query(16, ctypes.addressof(devices), ctypes.addressof(count))
        platform = 0x313F  # EGL_PLATFORM_DEVICE_EXT
        return any(egl.eglInitialize(ctypes.c_void_p(display(platform, device, None)), None, None)
                   for device in devices[:count.value])
    except (OSError, AttributeError, TypeError, ValueError):
        return False


@lru_cache(maxsize=1)
def choose_backend() -> str:
    """The OpenGL backend: that of MUJOCO_GL where it is set, else EGL, else OSMesa, on Linux; elsewhere MuJoCo's own.

    RuntimeError where neither is there, which says what to install.
    """
    name = os.environ.get("MUJOCO_GL", "").lower().strip()
    if sys.platform != "linux":
        return name
    name = name or ("egl" if _egl_works() else "osmesa" if ctypes.util.find_library("OSMesa") else "")
    if not name:
        raise RuntimeError("no pictures without EGL or OSMesa: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6; "
                           "or set MUJOCO_GL; observations='low_dim' needs no pictures")
    os.environ["MUJOCO_GL"] = name
    if name in ("egl", "osmesa"):
        _use(name)
    return name


def _use(name: str) -> None:
    """Gives MuJoCo the backend, also if it was imported without one: it looks only once, at its import."""
    from mujoco.rendering.classic import gl_context

    if name == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    gl_context.GLContext = GLContext


class Cameras:
    """Pictures of one model, square, `size` pixels a side."""

    def __init__(self, model: mujoco.MjModel, size: int):
        choose_backend()
        self.model = model
        self.renderer = mujoco.Renderer(model, size, size)
        self.option = mujoco.MjvOption()
        self.option.sitegroup[:] = 0

    def take(self, data: mujoco.MjData, names: Sequence[str]) -> list[np.ndarray]:
        """uint8 [size, size, 3] of each camera."""
        pictures = []
        mujoco.mj_kinematics(self.model, data)  # geoms and lights may have been moved by hand
        mujoco.mj_camlight(self.model, data)
        for name in names:
            self.renderer.update_scene(data, name, self.option)
            pictures.append(self.renderer.render().copy())
        return pictures

    def close(self) -> None:
        self.renderer.close()
