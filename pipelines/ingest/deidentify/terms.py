"""Words that may stay in coded strings and descriptions. All other text goes: what is not known to be harmless may be a name."""

from __future__ import annotations

from pipelines.ingest.marks import COMPONENTS, KINDS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Defined terms and enumerated values (PS3.3) of the objects that are read here.
TERMS = frozenset([*COMPONENTS, *KINDS, "WHOLE BODY", "SCREEN SAVE", "FIELD MAP", "STEP AND SHOOT", "PALETTE COLOR", "SEMI AUTOMATIC"]) | _words("""
    YES NO Y N NONE OTHER UNKNOWN ORIGINAL DERIVED MIXED PRIMARY SECONDARY AXIAL LOCALIZER MPR CPR VOLUME PROJECTION NORM DIS2D DIS3D ND FM FFT
    M R I P MOSAIC VFRAME FIELD_MAP DIFFUSION DTI DWI PERFUSION ASL MULTIFRAME REFORMATTED RESAMPLED STATIC DYNAMIC GATED WHOLE BODY EMISSION
    TRANSMISSION ATTENUATION REPROJECTION SUM AVERAGE MEDIAN SCREEN SAVE IVI IMAGE SINGLE MULTI ECHO MFSPLIT CSA MOCO TTEST SVIEW PROT MR CT PT
    NM SC OT SEG RTSTRUCT RTDOSE RWV REG MG CR DX US XA MONOCHROME1 MONOCHROME2 RGB PALETTE COLOR YBR_FULL YBR_FULL_422 YBR_RCT YBR_ICT HFS HFP
    MAGNETIZATION_PREPARED PHASE_ENCODED
    HFDR HFDL FFS FFP FFDR FFDL LFP LFS RFP RFS AFDR AFDL PFDR PFDL SE IR GR EP RM SK MTC SS TRSS SP MP OSP 2D 3D PER RG CG PPG FC PFF PFP SPS
    FS SAT1 SAT2 COL ROW BRAIN HEAD NECK HEADNECK SKULL SPINE CSPINE TSPINE LSPINE CHEST ABDOMEN PELVIS BREAST PROSTATE LIVER HEART KNEE HIP
    SHOULDER EXTREMITY WHOLEBODY CTSPINE TLSPINE ORBIT FACE LUNG KIDNEY L B U BQML GML CM2ML CNTS PROPCNTS PCNT NCNT MLMING BW LBM BSA IBW
    LBMJAMES128 LBMJANMA ATTN DECY SCAT DTIM MOTN PMOT CLN RAN RADL DCAL START ADMIN BINARY FRACTIONAL LABELMAP PROBABILITY OCCUPANCY AUTOMATIC
    SEMIAUTOMATIC MANUAL SEGMENTATION UNDEFINED PRODUCT RESEARCH SERVICE TILED_FULL TILED_SPARSE VOLUMETRIC SAMPLED DISTORTED NO_LOSS LOSSY
    LOSSLESS ISO_15444_1 ISO_10918_1 ISO_14495_1 01 00 CLOSED_PLANAR CLOSEDPLANAR_XOR OPEN_PLANAR OPEN_NONPLANAR POINT GTV CTV PTV ORGAN
    EXTERNAL AVOIDANCE ORIENTATION CAVITY HU OD MGML Z_EFF ED EDW HU_MOD PCT IDENTITY INVERSE LINEAR LINEAR_EXACT SIGMOID ISOTROPIC DIRECTIONAL
    BMATRIX SPIN_ECHO GRADIENT_ECHO BOTH WATER_FAT RECTANGULAR CIRCULAR TRANSVERSE SAGITTAL CORONAL OBLIQUE UNALTERED PREDICTION RECONSTRUCTION
    REGULAR IRREGULAR PRESENT ABSENT MANUFACTURER SUBJECT ACQUIRED COMPLETED PAIRED UNPAIRED LEFT RIGHT MODIFIED REMOVED UNMODIFIED HELICAL
    SEQUENCED SPIRAL STATIONARY CONSTANT_ANGLE FREE BODY_COIL SURFACE VOLUME_COIL MULTICOIL 1H 31P 23NA 13C 19F
""")
#: Words of scanner models, of which many are also names: they stay only in ManufacturerModelName.
MODEL_WORDS = _words("""
    achieva advance aera allegra altea amira ambition anyscan aquilion area avanto avantofit biograph biographvision biograph6 biograph16
    biograph40 biograph64 biograph128 brightspeed brilliance centauri cima composer concerto connectome definition discovery dual echelon edge
    elan elition emotion espree essenza evolution excel excite explorer expert exact ecat eclipse galan gemini genesis gyroscan hd hde hdx hdxt
    harmony hispeed horizon hrrt hr hr+ impact ingenia ingenuity intera iq iris lightspeed lumina lx magna magnetom mct medical mmr mr mr355
    mr360 mr450 mr450w mr750 mr750w mrt msk nx oasis omni one optima orian orion panorama pet petct petmr pioneer plus premier prime prisma
    prismafit pro prodiva q quadra r recon revolution scenaria scope sensation signa sigma sola skyra skyrafit skyfit sonata somatom spectra
    spirit st ste stx symphony symphonytim systems terra tf tim time titan trio triotim truepoint truflight umi umr uex uct upmr vantage verio
    vereos vida vision vista voyager x xr xt xvr zenit zenition ge siemens philips toshiba canon ct 16 32 40 64 128 256 320 510 550 560 570 580
    590 600 610 620 660 690 710 750 770 780 790 870 880 890 970 1.5t 3t 3.0t 7t 1.5 3.0 7.0 t 01 02
""")
#: Names of tracers.
TRACERS = _words("""
    fdg fet fluorodeoxyglucose fluoroethyl tyrosine l d f 18 18f f18 f-18 11 11c c11 methionine met fmiso flt dopa fdopa fluorodopa psma
    dotatate dotatoc dotanoc ga 68 68ga ga68 choline acetate fluciclovine pib florbetapir florbetaben flutemetamol amyloid tau water o 15
    fluorothymidine naf sodium fluoride rubidium rb 82 solution
""")
#: Words of DimensionDescriptionLabel.
DIMENSIONS = _words("""
    stack id in-stack in position number temporal index dimension segment image patient row column plane frame referenced effective echo time
    cardiac trigger delay diffusion b-value b value gradient orientation label direction data type contrast bolus agent inversion inversion-time
    acquisition concatenation ops slice
""")
