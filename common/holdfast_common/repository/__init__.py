"""The repository engine: format 1, described byte by byte in ``FORMAT.md`` beside this file.

The data's path of a backup: `writer` -> `disk_writer` -> `window_worker` -> `chunk_codec` ->
`pack_writer` -> `index` -> `map_editor` -> `manifest`. A restore reads it upwards: `reader` ->
`manifest` -> `disk_map` -> `frame_reader` -> `chunk_codec`. All of them stand on `object_store`,
`keys` and `sealed_object`.
"""
