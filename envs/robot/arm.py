"""The arm as a robot's controller offers it: ten times a second a position of the tool and whether to grip."""
import mujoco
import numpy as np

HOME = np.array([0.38, 0.0, 0.30])
LOW, HIGH = np.array([0.25, -0.36, 0.015]), np.array([0.65, 0.36, 0.5])  # where the tool may be sent
REACH = 0.1             # m that the commanded position moves in a control step at most
PERIOD = 0.1            # s between actions
DOWN = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # the tool's frame when it points downwards
OPEN = 0.04             # m, place of an open finger
POSTURE = 0.2           # share of the way to the resting posture that an iteration goes, as far as the tool stays put
DAMP = 1e-4 * np.eye(6)  # of the least squares
TURN = 0.3              # rad that a joint turns in an iteration at most
STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class Arm:
    """Model and data of a scene, with inverse kinematics for a tool that points down.

    A seventh joint is free to move while the tool stands still; it is pulled to one posture, so that a position of the
    tool looks the same however it was reached. `target` [3] is the commanded position; the rest of the state is
    MuJoCo's.
    """

    def __init__(self, model: mujoco.MjModel, posture: np.ndarray, joints: list[int]):
        self.model, self.data, self._scratch = model, mujoco.MjData(model), mujoco.MjData(model)
        self.joints, self.fingers = joints[:7], joints[7:]
        self._dofs = [int(model.jnt_dofadr[np.flatnonzero(model.jnt_qposadr == address)[0]]) for address in self.joints]
        self._site = model.site("tool").id
        self._substeps = round(PERIOD / model.opt.timestep)
        self._jacobian = np.zeros((6, model.nv))
        self._rest = posture
        self._rest = self.solve(posture, HOME, iterations=100)
        self.target = HOME.copy()

    @property
    def tool(self) -> np.ndarray:
        """Position of the tool [3]."""
        return self.data.site_xpos[self._site].copy()

    @property
    def grip(self) -> bool:
        """Whether the fingers are told to close."""
        return bool(self.data.ctrl[7] < OPEN / 2)

    @property
    def width(self) -> float:
        """Opening of the gripper in metres."""
        return float(self.data.qpos[self.fingers].sum())

    def solve(self, angles: np.ndarray, position: np.ndarray, *, iterations: int = 4) -> np.ndarray:
        """Joint angles [7] that bring the tool to a position, from `angles`: damped least squares."""
        scratch, error, turn, weights = self._scratch, np.zeros(6), np.zeros(4), np.zeros(6)
        for _ in range(iterations):
            scratch.qpos[self.joints] = angles
            mujoco.mj_kinematics(self.model, scratch)
            mujoco.mj_comPos(self.model, scratch)
            error[:3] = position - scratch.site_xpos[self._site]
            mujoco.mju_mat2Quat(turn, (DOWN @ scratch.site_xmat[self._site].reshape(3, 3).T).ravel())
            mujoco.mju_quat2Vel(error[3:], turn, 1.0)
            mujoco.mj_jacSite(self.model, scratch, self._jacobian[:3], self._jacobian[3:], self._site)
            jacobian, wish = self._jacobian[:, self._dofs], POSTURE * (self._rest - angles)
            factor = jacobian @ jacobian.T + DAMP
            mujoco.mju_cholFactor(factor, 0.0)
            mujoco.mju_cholSolve(weights, factor, error - jacobian @ wish)
            change = wish + weights @ jacobian
            largest = abs(change).max()
            angles = angles + change * min(1.0, TURN / largest)
            if largest < 1e-3 and abs(error).max() < 1e-4:
                break
        return angles

    def place(self, position: np.ndarray) -> None:
        """Begins anew, with the arm, open, at a position."""
        mujoco.mj_resetData(self.model, self.data)
        self.target = position.copy()
        self.data.ctrl[:7] = self.data.qpos[self.joints] = self.solve(self._rest, position, iterations=30)
        self.data.ctrl[7:] = self.data.qpos[self.fingers] = OPEN

    def command(self, position: np.ndarray, grip: bool) -> None:
        """One control step of 0.1 s. Joints reach their new targets after half of it."""
        step = np.clip(position, LOW, HIGH) - self.target
        self.target = self.target + step * min(1.0, REACH / max(float(np.linalg.norm(step)), 1e-9))
        before, data = self.data.ctrl[:7].copy(), self.data
        after, half = self.solve(before, self.target), self._substeps // 2
        data.ctrl[7:] = 0.0 if grip else OPEN
        for number in range(half):
            data.ctrl[:7] = before + (after - before) * ((number + 1) / half)
            mujoco.mj_step(self.model, data)
        mujoco.mj_step(self.model, data, self._substeps - half)
        mujoco.mj_forward(self.model, data)  # positions of bodies belong to the end of the step

    def push(self, impulse: np.ndarray, body: int | None = None) -> None:
        """A blow [3] in N s at the centre of a body, or of the hand, changes all velocities by what it does to them."""
        where = int(self.model.site_bodyid[self._site]) if body is None else body
        jacobian, change = np.zeros((3, self.model.nv)), np.zeros((1, self.model.nv))
        mujoco.mj_jacBodyCom(self.model, self.data, jacobian, None, where)
        mujoco.mj_solveM(self.model, self.data, change, (impulse @ jacobian)[None])
        self.data.qvel += change[0]

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """The whole state, to be given to `restore`."""
        physics = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, physics, STATE)
        return physics, self.target.copy()

    def restore(self, state: tuple[np.ndarray, np.ndarray]) -> None:
        """Goes back to a state: what follows is equal bit for bit."""
        physics, target = state
        mujoco.mj_setState(self.model, self.data, physics, STATE)
        warm = self.data.qacc_warmstart.copy()
        mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warm
        self.target = target.copy()
