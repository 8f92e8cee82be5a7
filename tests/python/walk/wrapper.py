"""Walks the client's own methods: apply as a generator and as the admin, retries, errors with a code."""

import asyncio
import pathlib
import tempfile
import uuid

from brokkr import BrokkrError

from scene import YAML
from talk import OPERATIONS, call


async def apply_thrice(client, stack, **owner):
    """Applies a manifest three times: to create it, to find it unchanged, and to update it."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = pathlib.Path(folder) / "walked.yaml"
        for content, outcome in ((YAML, "created"), (YAML, "unchanged"), (YAML + "# more\n", "updated")):
            manifest.write_text(content)
            result = await client.apply(stack, folder, targeting=["env:wrapped"], **owner)
            assert result.status == outcome, (result.status, outcome)


async def refused(coroutine):
    try:
        await coroutine
    except BrokkrError as error:
        return error
    raise AssertionError("it should have been refused")


async def flows(scene):
    admin, agent, generator = scene.admin, scene.agent, scene.generator
    await apply_thrice(generator, f"applied-{scene.tag}")
    await apply_thrice(admin, f"applied-by-name-{scene.tag}", generator=f"generator-{scene.tag}")
    await apply_thrice(admin, f"applied-by-id-{scene.tag}", generator=str(scene.generator_id))

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "one.yaml").write_text(YAML)
        (pathlib.Path(folder) / "two.yml").write_text(YAML)
        stacks = await generator.retry(lambda api: OPERATIONS["list_stacks"].asyncio_detailed(client=api))
        applied = next(s for s in stacks if s.name == f"applied-{scene.tag}")
        assert "no tenant" in str(await refused(admin.apply("x", folder, generator=str(uuid.uuid4()))))
        assert "needs the generator" in str(await refused(admin.apply("x", folder)))
        assert (await generator.submit_manifests(applied.id, folder)).yaml_content.count("kind: Namespace") == 2

    unknown = uuid.uuid4()
    error = await refused(generator.retry(lambda api: OPERATIONS["get_stack"].asyncio_detailed(unknown, client=api)))
    assert (error.status, error.code, error.is_retryable()) == (404, "stack_not_found", False)
    error = await refused(agent.retry(lambda api: OPERATIONS["list_stacks"].asyncio_detailed(client=api)))
    assert (error.status, error.code) == (403, "stacks_list_denied")


def walk(scene):
    scene.label("env:wrapped")
    before = len(scene.target_state())
    asyncio.run(flows(scene))
    assert len(scene.target_state()) == before + 3, "the stacks are matched by their label"
    for stack in call(200, "list_stacks", client=scene.generator):
        if stack.name.startswith("applied-"):
            call(204, "delete_stack", stack.id, client=scene.generator)
    call(204, "agents_remove_label", scene.agent_id, "env:wrapped", client=scene.admin)
